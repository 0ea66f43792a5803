"""Contact sheet: what an augmentation does to one's own images, before a minute of training is spent on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cvtune.augment import FACTORS, MAPPING_VERSION, Pipeline, left_out
from cvtune.data import cache_folder, open_dataset
from cvtune.errors import ConfigError
from cvtune.kinds import PHOTOS, Values, shown, values_of
from cvtune.recipe import Augment
from cvtune.strips import outlined, shorten
from cvtune.study import Study

MIN_CELL = 96
MAX_LABEL = 240
GAP = 6
TEXT, TITLE, LINE = 16, 18, 28
INK, PAPER = (30, 30, 30), (255, 255, 255)


def contact_sheet(
    images: Sequence[npt.NDArray[Any]],
    labels: Sequence[str],
    augment: Augment,
    image_size: int,
    fit: str,
    strengths: Sequence[float],
    seed: int,
    masks: Sequence[npt.NDArray[np.uint8]] | None = None,
    values: Values = PHOTOS,
) -> Image.Image:
    """One row per image, one column per strength, all else as `augment` says.

    A row draws the same random numbers in each column, so that from left to right one change grows. Masks are drawn
    over their images as outlines, moved with them.

    Args:
        images: (H, W, C) each; sizes may differ.
        labels: class name of each image.
        augment: the augmentation; its own strength is not used.
        image_size: side of an augmented image in px; below 96 px it is enlarged by a whole factor.
        fit: see `pixels.to_square`.
        strengths: the columns, each in [0, 1]; at 0 stands what evaluation sees.
        seed: of the first row; each further row takes the next one.
        masks: uint8 (H, W) of each image; None: there are none.
        values: what the numbers of the images mean; see `kinds.shown` for how those that are no photos are drawn.

    Returns:
        An RGB picture with a title (and below it what such images cannot take), a header of strengths, and the labels
        at the left.

    Raises:
        ConfigError: there is nothing to show, images and labels differ in number, or a strength lies outside [0, 1].
    """
    _check(len(images), len(labels), strengths)
    text, title = ImageFont.load_default(size=TEXT), ImageFont.load_default(size=TITLE)
    names = [shorten(label, text, MAX_LABEL) for label in labels]
    margin = math.ceil(max(text.getlength(word) for word in [*names, "strength"])) + 2 * GAP
    cell = image_size * max(1, math.ceil(MIN_CELL / image_size))
    headings = [describe(augment, image_size, fit), *filter(None, [left_out(augment, values.kind)])]
    step, top = cell + GAP, (len(headings) + 1) * LINE + GAP
    width = max(margin + step * len(strengths), *(math.ceil(title.getlength(line)) + 2 * GAP for line in headings))
    sheet = Image.new("RGB", (width, top + step * len(images)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, heading in enumerate(headings):
        draw.text((GAP, (line + 0.5) * LINE), heading, INK, title, anchor="lm")
    header = (len(headings) + 0.5) * LINE
    draw.text((GAP, header), "strength", INK, text, anchor="lm")
    for row, name in enumerate(names):
        draw.text((GAP, top + row * step + cell / 2), name, INK, text, anchor="lm")
    for column, strength in enumerate(strengths):
        x = margin + column * step
        draw.text((x + cell / 2, header), f"{strength:.3g}", INK, text, anchor="mm")
        pipeline = Pipeline(augment.model_copy(update={"strength": strength}), image_size, fit, values)
        for row, image in enumerate(images):
            mask = None if masks is None else masks[row]
            sheet.paste(_cell(pipeline, image, mask, seed + row, cell), (x, top + row * step))
    return sheet


def _cell(
    pipeline: Pipeline, image: npt.NDArray[Any], mask: npt.NDArray[np.uint8] | None, seed: int, side: int
) -> Image.Image:
    """What a pipeline makes of an image, `side` px wide, with the outlines of its mask."""
    if mask is None:
        made = pipeline(image, seed)
    else:
        made, mask = pipeline.with_mask(image, mask, seed)
    enlarged = Image.fromarray(shown(made, pipeline.values)).resize((side, side), Image.Resampling.NEAREST)
    return enlarged if mask is None else Image.fromarray(outlined(np.asarray(enlarged), mask))


def describe(augment: Augment, image_size: int, fit: str) -> str:
    """One line that says what a sheet shows: policy, version of the mapping, factors, flip, size."""
    factors = [f"{factor} {getattr(augment, factor):.3g}" for factor in FACTORS]
    parts = [
        f"{augment.policy} (mapping {MAPPING_VERSION})",
        *(factors if augment.policy == "families" else []),
        f"flip {augment.flip}",
        f"{image_size} px {fit}",
    ]
    return " | ".join(parts)


def _check(images: int, labels: int, strengths: Sequence[float]) -> None:
    if not images or images != labels or not strengths:
        raise ConfigError(
            f"A contact sheet of {images} images, {labels} labels and {len(strengths)} strengths cannot be drawn: give "
            "at least one image and one strength, and one label for each image."
        )
    if wrong := [s for s in strengths if not 0 <= s <= 1]:
        raise ConfigError(f"strength = {wrong[0]} lies outside [0, 1]: 0 is the identity, 1 the strongest. Correct it.")


def draw_preview(study: Study, rows: int, strengths: Sequence[float], seed: int, cache: Path | None) -> Image.Image:
    """The contact sheet of a study's own training images: `rows` of them spread over the classes.

    Raises:
        DataError, ConfigError: the images cannot be read, or the policy cannot be built.
    """
    data, settings = open_dataset(study.data, study.recipe.data, cache_folder(cache), None, 1), study.recipe.data
    order = np.argsort(data.train.labels, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(rows, len(order))).astype(int)]
    return contact_sheet(
        [np.asarray(data.train.images[int(i)]) for i in chosen],
        [data.classes[data.train.labels[i]] for i in chosen],
        study.recipe.augment,
        settings.image_size,
        settings.fit,
        strengths,
        seed,
        None if data.train.masks is None else [np.asarray(data.train.masks[int(i)]) for i in chosen],
        values_of(data.kind, data.stats, settings.window_low, settings.window_high),
    )
