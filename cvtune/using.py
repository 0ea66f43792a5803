"""The commands that use what a study found: best, predict. `cli.py` puts them on the line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cvtune import study
from cvtune.durable import read_json
from cvtune.errors import ConfigError
from cvtune.looking import STUDIES, Storage, find

Named = Annotated[str, typer.Argument(help="Name of a study, its folder, or a copy of its best/.", metavar="STUDY")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
SHOWN = 3  # classes that a line of `predict` names
CHECKED = 32  # validation images on which ONNX is compared with torch
BROKEN = 3  # exit code where files could not be read


def best(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    storage: Storage = STUDIES,
    as_json: AsJson = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write best/model.onnx instead, checked on the study's validation images.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for decoded images, with --onnx.", envvar="CVTUNE_CACHE")
    ] = None,
) -> None:
    """Print the best recipe of a study as a workflow that trains it: `cvtune best STUDY > w.py && cvtune run w.py`."""
    from cvtune.recipe import Recipe
    from cvtune.workflow import workflow_of

    if onnx:
        _write_onnx(weights_of(str(best_folder(name, storage).parent), storage), cache)
        return
    folder = best_folder(name, storage)
    settings = study.read(folder.parent / "study.json")
    metrics: dict[str, Any] = read_json(folder / "metrics.json") or {}
    recipe = Recipe.model_validate(read_json(folder / "recipe.json") or {}).replace({"seed": settings.recipe.seed})
    if as_json:
        told = {"study": settings.name, "recipe": recipe.model_dump(mode="json"), "metrics": metrics}
        print(json.dumps({**told, "comparison": read_json(folder / "comparison.json")}, indent=2))
        return
    score = f"trial {metrics['trial']}, {settings.objective} = {metrics[settings.objective]:.4f}"
    print(workflow_of(settings, recipe, score), end="")


def predict(
    name: Named,
    images: Annotated[
        list[str], typer.Argument(help="Files, folders (with all below them), quoted patterns.", metavar="IMAGE...")
    ],
    storage: Storage = STUDIES,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and image.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for predicted masks, PNG files named like the images.")
    ] = None,
) -> None:
    """Tell what the best model of a study makes of images, prepared as for validation. Exit code 3 if any is broken."""
    from cvtune import predict as predicting
    from cvtune.trained import Model

    found = predicting.find_images(images)
    model = Model(weights_of(name, storage))
    if out is not None and model.about.task != "segment":
        raise ConfigError(f"--out: the task is {model.about.task!r}, which has no masks to write. Leave it out.")
    if out is not None:
        predicting.check_apart(found, out)
    width = max(len(str(each.path)) for each in found)
    broken = 0
    for told in predicting.predict(model, found):
        mask = predicting.save_mask(told, out) if out is not None and told.mask is not None else None
        broken += bool(told.error)
        if as_json:
            print(json.dumps({**told.to_json(), **({"mask": str(mask)} if mask else {})}), flush=True)
        elif told.error:
            print(f"broken: {told.error}", file=sys.stderr)
        else:
            print(f"{told.image.path!s:<{width}}  {told.line(SHOWN)}{f'  {mask}' if mask else ''}", flush=True)
    if broken:
        print(f"{broken} of {len(found)} images could not be read.", file=sys.stderr)
        raise typer.Exit(BROKEN)


def _write_onnx(weights: Path, cache: Path | None) -> None:
    from cvtune.data import cache_folder, open_dataset
    from cvtune.onnx_file import TOLERANCE, export
    from cvtune.trained import Model

    settings, model = study.read(weights.parents[1] / "study.json"), Model(weights, "cpu")
    data = open_dataset(settings.data, model.about.recipe.largest, cache_folder(cache), None, 1)
    if data.fingerprint != model.about.fingerprint:
        print(f"note: {settings.data.source} has other images than the model was trained on.", file=sys.stderr)
    images = [data.val.images[i] for i in range(min(CHECKED, len(data.val.labels)))]
    path = weights.with_name("model.onnx")
    apart = export(model, path, images)
    print(f"{path}: on {len(images)} validation images within {apart:.1g} of torch's logits (at most {TOLERANCE:g})")


def best_folder(name: str, storage: Path) -> Path:
    """`best/` of a study, written now where the study has a best trial but no such folder yet.

    Raises:
        ConfigError: there is no such study, or it has no best trial.
        OwnedError: it is still missing, and another process runs the study.
    """
    folder = find(name, storage)
    if not (folder / "best" / "README.md").is_file():  # of an earlier version, or never ended in good order
        from cvtune import history, lease
        from cvtune.best import write_best

        lease.refuse_if_owned(folder)
        write_best(study.read(folder / "study.json"), folder, history.load(folder))
    if not (folder / "best" / "recipe.json").is_file():
        raise ConfigError(f"study {folder.name!r} has no trial with a score yet. `cvtune status {name}` shows it.")
    return folder / "best"


def weights_of(name: str, storage: Path) -> Path:
    """The weights that `name`, a study or a copy of its `best/`, stands for.

    Raises:
        ConfigError: there are none; see `best_folder`.
    """
    from cvtune.model_file import FILE

    for path in (Path(name), Path(name) / FILE):
        if path.is_file() and path.suffix == ".safetensors":
            return path
    folder = best_folder(name, storage)
    if not (folder / FILE).is_file():
        why = ((read_json(folder / "metrics.json") or {}).get("weights") or {}).get("why", "they are gone")
        raise ConfigError(f"study {folder.parent.name!r} has no weights to predict with: {why}")
    return folder / FILE
