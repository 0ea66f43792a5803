"""What follows from a data set for what is searched on it: the rules of `cvtune check` and `cvtune init`, one a row.

They are priors, not laws: each narrows or moves a range for the reason that stands beside it, and the search decides.
Where a number was measured here the reason says so; the others are what the literature or practice teaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cvtune.data.inspect import Facts
from cvtune.recipe import REFERENCE_BATCH, Value
from cvtune.sections import Source
from cvtune.space import Domain, LogUniform, Uniform
from cvtune.study import SWEET_SPOT, for_data
from cvtune.workflow import literal

FEW, MANY = 150, 2000  # training images per class
STEPS = 30  # batches that an epoch should have at least
SIZES = (16, 24, 32, 48, 64, 96, 128)  # px, of data.image_size
SMALL = 48  # px: what has a shorter side of at most this has little to crop or blur
INTRICATE = 120.0  # spatial information; see `Facts.complexity`
UNEVEN = 5.0  # times: the most frequent class over the rarest one


@dataclass(frozen=True)
class Rule:
    """One row: where `when` holds, `name` is set to a value or searched over a domain, for a reason.

    Attributes:
        name: dotted, of a value of the recipe; of the rows of one name the first that holds is taken.
        reason: one sentence; `{f.total}` and the like stand for facts, `{value}` for what the row gives.
    """

    name: str
    when: Callable[[Facts], bool]
    gives: Callable[[Facts], Domain | Value]
    reason: str


@dataclass(frozen=True)
class Advice:
    """What a rule gives for one data set."""

    name: str
    value: Domain | Value
    reason: str

    @property
    def code(self) -> str:
        """The value as Python source: `LogUniform(0.0003, 0.009)`, or `64`."""
        return code_of(self.value)


def image_size(facts: Facts) -> int:
    """The size of SIZES that is nearest to the median shorter side, by their ratio."""
    return min(SIZES, key=lambda size: abs(math.log(size / facts.shorter[1])))


def batch_size(facts: Facts) -> int:
    """The largest power of two from 8 to 64 of which an epoch has STEPS batches; else 8."""
    most = facts.images["train"] / STEPS
    return next((size for size in (64, 32, 16) if size <= most), 8)


def rates(facts: Facts, factor: float = 1.0) -> LogUniform:
    """The built-in range of rates, times `factor`, and by the square root of the batch that the rules give."""
    usual = SWEET_SPOT.domains["optim.lr"]
    assert isinstance(usual, LogUniform)
    factor *= math.sqrt(_batch(facts) / REFERENCE_BATCH)

    def scaled(rate: float) -> float:
        return float(f"{rate * factor:.2g}")

    likely = usual.likely and (scaled(usual.likely[0]), scaled(usual.likely[1]))
    return LogUniform(scaled(usual.low), scaled(usual.high), likely=likely)


def _batch(facts: Facts) -> int:
    return min(batch_size(facts), 8) if facts.task == "segment" else batch_size(facts)


RULES = (
    Rule(
        "data.image_size",
        lambda f: f.shorter[1] > 1.2 * SIZES[-1],
        image_size,
        "half of the images have a shorter side of {f.shorter[1]} px or more, and {value} px is where a search on few "
        "GPUs begins: raise it once the strengths are known.",
    ),
    Rule(
        "data.image_size",
        lambda f: True,
        image_size,
        "the shorter side of the images is {f.shorter[1]} px in the median, to which {value} px is the nearest of the "
        "usual sizes; a larger one would only enlarge them.",
    ),
    Rule(
        "data.batch_size",
        lambda f: f.task == "segment",
        lambda f: _batch(f),
        "each image has a label per pixel, so what is scarce is steps, not labels per step.",
    ),
    Rule(
        "data.batch_size",
        lambda f: f.images["train"] < STEPS * REFERENCE_BATCH,
        batch_size,
        "of {f.images[train]} training images batches of 64 would leave fewer than 30 steps per epoch.",
    ),
    Rule(
        "max_epochs",
        lambda f: f.images["train"] >= 50_000,
        lambda f: 9,
        "{f.images[train]} training images make many steps per epoch.",
    ),
    Rule(
        "augment.strength",
        lambda f: f.shorter[1] <= SMALL,
        lambda f: Uniform(0, 0.6),
        "images of {f.shorter[1]} px have little to crop or blur (measured on 600 gray images of 28 px: accuracy fell "
        "from 0.82 to 0.74 as strength rose).",
    ),
    Rule(
        "augment.strength",
        lambda f: f.per_class >= MANY,
        lambda f: Uniform(0, 0.7),
        "with {f.per_class:.0f} training images per class there is less to make up for.",
    ),
    Rule(
        "augment.strength",
        lambda f: True,
        lambda f: SWEET_SPOT.domains["augment.strength"],
        "nothing in the images says where in its range the best strength lies; of random points three in four are "
        "drawn from the likely part.",
    ),
    Rule(
        "regularize.strength",
        lambda f: f.per_class < FEW,
        lambda f: Uniform(0, 0.6),
        "with {f.per_class:.0f} training images per class short trainings end before they overfit (measured on 1,442 "
        "to 1,769 photos: the best recipes had below 0.1).",
    ),
    Rule(
        "regularize.strength",
        lambda f: f.per_class >= MANY,
        lambda f: Uniform(0, 0.7),
        "with {f.per_class:.0f} training images per class a small network overfits late.",
    ),
    Rule(
        "regularize.strength",
        lambda f: True,
        lambda f: SWEET_SPOT.domains["regularize.strength"],
        "nothing in the images says where in its range the best strength lies; of random points three in four are "
        "drawn from the likely part.",
    ),
    Rule(
        "optim.lr",
        lambda f: f.complexity > INTRICATE,
        lambda f: rates(f, 0.5),
        "intricate images (spatial information {f.complexity:.0f}, above 120) are said to want lower rates, which was "
        "not measured here; `cvtune lr` measures it on yours.",
    ),
    Rule(
        "optim.lr",
        lambda f: _batch(f) < REFERENCE_BATCH,
        lambda f: rates(f),
        "the usual range, lower by the square root of the batch (Malladi et al. 2022); `cvtune lr` measures it.",
    ),
    Rule(
        "optim.lr",
        lambda f: True,
        lambda f: rates(f),
        "the usual range of AdamW for batches of 64, likely where a small network did best; `cvtune lr` measures it on "
        "your images.",
    ),
    Rule(
        "loss.class_weight",
        lambda f: f.task == "segment" and f.imbalance >= UNEVEN,
        lambda f: Uniform(0, 1),
        "the most frequent class has {f.imbalance:.0f} times the pixels of the rarest one.",
    ),
    Rule(
        "data.oversample",
        lambda f: f.task != "segment" and f.imbalance >= UNEVEN,
        lambda f: Uniform(0, 1),
        "the most frequent class has {f.imbalance:.0f} times the images of the rarest one.",
    ),
)


def advise(facts: Facts) -> tuple[Advice, ...]:
    """What the rules give for these facts, in their order: one Advice per name at most."""
    found: dict[str, Advice] = {}
    for rule in RULES:
        if rule.name not in found and rule.when(facts):
            value = rule.gives(facts)
            found[rule.name] = Advice(rule.name, value, rule.reason.format(f=facts, value=value))
    return tuple(found.values())


def code_of(value: Domain | Value) -> str:
    """A value or a domain as Python source."""
    if isinstance(value, LogUniform | Uniform):
        likely = f", likely=({value.likely[0]:g}, {value.likely[1]:g})" if value.likely else ""
        return f"{type(value).__name__}({value.low:g}, {value.high:g}{likely})"
    return repr(value)


TEXT = '''\
"""{title}

    cvtune run {file}

Ranges by `cvtune check`: each has its reason above it. They are priors: change what you know better.
"""

from cvtune import {imports}


def study() -> Study:
    return Study(
        name={name},
        data=Source({source}),
        recipe=Recipe().replace(
            {{
{values}
            }}
        ),
        space=space(
            {{
{domains}
            }}
        ),
    )
'''


def workflow(facts: Facts, file: str, source: Source) -> str:
    """A workflow for these images with the ranges that the rules give, each with its reason as a comment.

    Args:
        file: its name, for the docstring.
        source: how the images were read; what differs from the defaults is written down.
    """
    base = for_data(facts.source, lambda _: facts.task == "segment")
    advice = advise(facts)
    fixed = {one.name: one for one in advice if not isinstance(one.value, LogUniform | Uniform)}
    searched = [one for one in advice if one.name not in fixed]
    plain = type(base.recipe)().flat()
    given = [
        Advice(name, value, "as in the built-in study for such images.")
        for name, value in base.recipe.flat().items()
        if value != plain[name] and name not in fixed
    ]
    used = sorted({type(one.value).__name__ for one in searched})
    counted = ", ".join(f"{number} {part}" for part, number in facts.images.items())
    return TEXT.format(
        title=f"{base.name}: {len(facts.classes)} classes, {counted} images.",
        file=file,
        imports=", ".join([*sorted({"Recipe", "Source", "Study", *used}), "space"]),
        name=literal(base.name),
        source=", ".join(f"{name}={literal(getattr(source, name))}" for name in _said(source)),
        values="\n".join(_commented(one) for one in [*given, *fixed.values()]),
        domains="\n".join(_commented(one) for one in searched),
    )


def _said(source: Source) -> list[str]:
    """The fields of a source that have to be written: where the images are, and what is not the default."""
    plain = Source()
    names = type(source).model_fields
    return [name for name in names if name == "source" or getattr(source, name) != getattr(plain, name)]


def _commented(one: Advice) -> str:
    indent = " " * 16
    words, lines = f"{one.reason[:1].upper()}{one.reason[1:]}".split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 98:
            lines.append("")
        lines[-1] += f" {word}"
    return "\n".join([*(f"{indent}#{line}" for line in lines), f'{indent}"{one.name}": {one.code},'])
