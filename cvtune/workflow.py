"""A recipe as a workflow: the text of a Python file that `cvtune run` takes."""

from __future__ import annotations

import json
from typing import Any

from cvtune.recipe import FIELDS, Recipe
from cvtune.sections import Source
from cvtune.study import Study

TEXT = '''\
"""{title}

    cvtune run FILE.py

Trains this recipe once, to the end; `best/` then holds the model. To compare several seeds on the test images, write
`candidates={{"found": RECIPE}}` and `Budget(trials=0)`, and leave out `confirm`. To search around it, give a `space`.
"""

from cvtune import FIFO, Budget, Confirm, Recipe, Source, Study

RECIPE = Recipe().replace(
    {{
{recipe}
    }}
)


def study() -> Study:
    return Study(
        name={name},
        data=Source({source}),
        recipe=RECIPE,
        objective={objective},
        scheduler=FIFO(),
        budget=Budget(trials=1),
        noise_seeds=0,
        confirm=Confirm(top=0),
    )
'''


def workflow_of(study: Study, recipe: Recipe, about: str) -> str:
    """A workflow that trains `recipe`, found by `study`, on the study's images.

    Args:
        about: what the recipe reached, in words.
    """
    changed: dict[str, Any] = {k: v for k, v in recipe.flat().items() if v != FIELDS[k].default}
    if recipe.changes:
        changed["changes"] = recipe.changes
    plain = Source()
    source = {k: getattr(study.data, k) for k in Source.model_fields}
    told = [f"{k}={literal(v)}" for k, v in source.items() if k == "source" or v != getattr(plain, k)]
    title = f"The best recipe that the study {study.name!r} found: {about}."
    return TEXT.format(
        title=title.replace("\\", "/").replace('"""', "'''"),
        recipe="\n".join(f"        {literal(k)}: {literal(v)}," for k, v in changed.items()),
        name=literal(f"{study.name[:95]}-best"),
        source=", ".join(told),
        objective=literal(study.objective),
    )


def literal(value: Any) -> str:
    """Plain values as Python source, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + "".join(f"{literal(v)}, " for v in value).rstrip() + ")"
    return repr(value)
