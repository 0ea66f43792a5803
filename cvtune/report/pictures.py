"""Pictures that a report needs the images for: augmentation sheet and worst errors. Run in a process of its own.

    python -m cvtune.report.pictures < wanted.json

Decoding and augmentation load torch, which the report itself does without; and where the images are not at hand, such
as on a laptop that a study was copied to, only these pictures are missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtune.durable import read_json, write_whole

FOLDER = "report"  # in the study's folder
SHEET, ERRORS, LIST = "augmentation.png", "errors", "pictures.json"
LIMIT_S = 180.0  # decoding a set that no cache holds any more may take longer than a reader waits
SIDE = 112  # px of one error
SHEET_ROWS = 6


@dataclass(frozen=True)
class Pictures:
    """What there is: files in the study's folder, and what to say about what is missing."""

    sheet: Path | None
    errors: dict[int, Path]
    note: str = ""


def bring(folder: Path, recipe: dict[str, Any], samples: Sequence[int], cache: Path | None = None) -> Pictures:
    """The pictures of a study, drawn anew unless those of the same recipe and samples are there.

    Args:
        recipe: the best one, as in `best/recipe.json`.
        samples: numbers of test images.
    """
    wanted = {"format": 1, "recipe": recipe, "samples": list(samples)}
    place = folder / FOLDER
    note = ""
    if read_json(place / LIST) != wanted:
        note = _draw_aside({**wanted, "folder": str(folder.resolve()), "cache": cache and str(cache)})
    sheet = place / SHEET
    errors = {i: path for i in samples if (path := place / ERRORS / f"{i}.png").is_file()}
    return Pictures(sheet if sheet.is_file() and not note else None, {} if note else errors, note)


def _draw_aside(wanted: dict[str, Any]) -> str:
    """Run this module; returns why there are no pictures, or nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cvtune.report.pictures"],
            input=json.dumps(wanted),
            text=True,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"The images could not be read within {LIMIT_S:g} s."
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else f"The images could not be read here: {lines[-1] if lines else 'no reason'}"


def draw(folder: Path, recipe: dict[str, Any], samples: Sequence[int], cache: Path | None) -> None:
    """Write the sheet at the recipe's strength, and a picture of each test image, to the study's folder.

    Raises:
        CvtuneError: the images cannot be read, or the recipe's augmentation cannot be built.
    """
    import numpy as np

    from cvtune import study
    from cvtune.data import cache_folder, open_dataset
    from cvtune.kinds import shown, values_of
    from cvtune.recipe import Recipe
    from cvtune.report.sheet import draw_preview

    best = Recipe.model_validate(recipe)
    settings = study.read(folder / "study.json")
    settings = settings.model_copy(update={"recipe": settings.recipe.model_copy(update={"augment": best.augment})})
    strength = best.augment.strength
    columns = sorted({0.0, round(strength / 2, 3), round(strength, 3), 1.0})
    place = folder / FOLDER
    (place / ERRORS).mkdir(parents=True, exist_ok=True)
    draw_preview(settings, SHEET_ROWS, columns, 0, cache).save(place / SHEET)
    data = open_dataset(settings.data, settings.recipe.data, cache_folder(cache), None, 1)
    window = settings.recipe.data.window_low, settings.recipe.data.window_high
    values = values_of(data.kind, data.stats, *window)
    for old in (place / ERRORS).glob("*.png"):
        old.unlink()
    for i in samples:
        mask = None if data.test.masks is None else np.asarray(data.test.masks[i])
        image = shown(np.asarray(data.test.images[i]), values)
        _thumbnail(image, mask).save(place / ERRORS / f"{i}.png")
    write_whole(place / LIST, json.dumps({"format": 1, "recipe": recipe, "samples": list(samples)}))


def _thumbnail(image: Any, mask: Any) -> Any:
    """An image of at most `SIDE` px or a whole multiple of a small one, with the outline of its mask."""
    import numpy as np
    from PIL import Image

    from cvtune.strips import outlined

    whole = max(1, SIDE // max(image.shape[:2]))
    picture = Image.fromarray(image)
    if whole > 1:
        picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((SIDE, SIDE))
    return picture if mask is None else Image.fromarray(outlined(np.asarray(picture), mask))


if __name__ == "__main__":
    import os

    from cvtune.errors import CvtuneError

    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    asked = json.load(sys.stdin)
    try:
        draw(Path(asked["folder"]), asked["recipe"], asked["samples"], asked["cache"] and Path(asked["cache"]))
    except (CvtuneError, OSError) as error:
        sys.exit(str(error))
