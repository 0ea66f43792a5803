"""Strips: what a trial makes of the same few validation images, one picture per report, to lie beside its curves.

They are in `trials/<trial>/<attempt>/media/<step>.png`. Of a long trial not every step is kept: `kept` says which.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cvtune.durable import write_whole

CELL, FRAME, GAP = 64, 3, 4  # px
TEXT, LINE = 11, 14
ACROSS = 8  # images side by side
MOST = 16  # strips of one attempt, beside the newest
MASK_CELL = 128  # px: outlines need more room
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # Okabe & Ito's blue and vermilion: red and green look alike to many
INK, PAPER = (30, 30, 30), (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def choose(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of `count` images (or all, if fewer): the classes in turn, the same ones for the same `labels`."""
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)  # of an image within its class
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        rank[mine] = np.arange(len(mine))
    return np.lexsort((labels, rank))[:count]


def draw(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    classes: Sequence[str],
) -> Image.Image:
    """The images in rows of eight, each framed by whether it was told right, with what was predicted.

    Args:
        images: uint8 (N, S, S, 3), N at least 1.
        labels: (N,), the right classes.
        probabilities: (N, K), what the model gives.
        classes: K names.

    Returns:
        A palette picture. Beneath each image stand the predicted class and its probability; where it is wrong, the
        right class and its probability on a second line.
    """
    predicted = probabilities.argmax(1)
    said = []
    for k, label, chance in zip(predicted, labels, probabilities, strict=True):
        lines = [("", k)] if k == label else [("", k), ("is ", label)]
        said.append([(before, classes[line], f"  {chance[line]:.0%}") for before, line in lines])
    return _sheet([_fitted(image, CELL) for image in images], predicted == labels, said, CELL)


def draw_tags(
    images: npt.NDArray[np.uint8],
    tags: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float32],
    classes: Sequence[str],
) -> Image.Image:
    """As `draw`, of images with several classes: the frame says whether all that is known was told right.

    Args:
        images: uint8 (N, S, S, 3), N at least 1.
        tags: (N, K) in 0..1, NaN where nothing is known.
        probabilities: (N, K), what the model gives.
        classes: K names.

    Returns:
        A palette picture. Beneath each image stand the classes of a probability above 0.5; where some are wrong, the
        right ones on a second line.
    """
    known, there = ~np.isnan(tags), tags >= 0.5
    right = (((probabilities > 0.5) == there) | ~known).all(1)

    def names(row: npt.NDArray[np.bool_]) -> str:
        return ", ".join(name for name, is_there in zip(classes, row, strict=True) if is_there) or "none"

    said = [[("", names(guess > 0.5), "")] for guess in probabilities]
    for lines, row, is_right in zip(said, there, right, strict=True):
        lines += [] if is_right else [("is ", names(row), "")]
    return _sheet([_fitted(image, CELL) for image in images], right, said, CELL)


def draw_masks(
    images: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.uint8],
    predicted: npt.NDArray[np.uint8],
    classes: Sequence[str],
) -> Image.Image:
    """The images in rows of four: the outlines of the mask in blue, of what was predicted beside it in vermilion.

    Args:
        images: uint8 (N, S, S, 3), N at least 1.
        masks: uint8 (N, S, S), the right classes; `IGNORE` where not labelled.
        predicted: uint8 (N, S, S).
        classes: K names.

    Returns:
        A palette picture. Beneath each image stands the mean over its classes of the intersection over union, and
        the class where it is lowest. The frame is blue where the mean is at least 0.5.
    """
    cells, said, good = [], [], []
    for image, mask, guess in zip(images, masks, predicted, strict=True):
        cells.append(outlined(_fitted(image, MASK_CELL), mask, guess))
        found = iou_of_classes(mask, guess, len(classes))
        lowest = min(found, key=lambda k: found[k], default=None)
        value = float(np.mean(list(found.values()))) if found else math.nan
        good.append(value >= 0.5)
        said.append([("", f"IoU {value:.2f}", "")])
        if lowest is not None and len(found) > 1:
            said[-1].append(("", classes[lowest], f"  {found[lowest]:.2f}"))
    return _sheet(cells, np.array(good), said, MASK_CELL)


def outlined(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], guess: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """An image (H, W, 3) with the outlines of a mask and of a guess; those are enlarged or shrunk to its size."""
    image = image.copy()
    for numbers, color in ((guess, WRONG), (mask, RIGHT)):
        if numbers is not None:
            full = np.asarray(Image.fromarray(numbers).resize(image.shape[1::-1], Image.Resampling.NEAREST))
            edge = np.zeros(full.shape, bool)
            edge[:, 1:] |= full[:, 1:] != full[:, :-1]
            edge[1:] |= full[1:] != full[:-1]
            image[edge] = color
    return image


def iou_of_classes(mask: npt.NDArray[np.uint8], guess: npt.NDArray[np.uint8], classes: int) -> dict[int, float]:
    """Intersection over union of each class that occurs in a mask, over its labelled pixels."""
    labelled, found = mask < classes, {}
    for k in np.unique(mask[labelled]).tolist():
        either = ((mask == k) | (guess == k)) & labelled
        found[k] = float(((mask == k) & (guess == k)).sum() / either.sum())
    return found


def _fitted(image: npt.NDArray[np.uint8], cell: int) -> npt.NDArray[np.uint8]:
    enlarge = Image.Resampling.NEAREST if len(image) < cell else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize((cell, cell), enlarge))


def _sheet(
    cells: Sequence[npt.NDArray[np.uint8]],
    right: npt.NDArray[np.bool_],
    said: Sequence[Sequence[tuple[str, str, str]]],
    cell: int,
) -> Image.Image:
    """Pictures of `cell` px in rows, each in its frame, with up to two lines beneath: (before, what is cut, after)."""
    font = ImageFont.load_default(size=TEXT)
    side = cell + 2 * FRAME
    wide, high = side + GAP, side + 2 * LINE + GAP
    across = min(ACROSS * CELL // cell, len(cells))
    strip = Image.new("RGB", (across * wide, -(-len(cells) // across) * high), PAPER)
    pen = ImageDraw.Draw(strip)
    for place, (pixels, is_right, lines) in enumerate(zip(cells, right, said, strict=True)):
        x, y = place % across * wide, place // across * high
        pen.rectangle((x, y, x + side - 1, y + side - 1), RIGHT if is_right else WRONG)
        strip.paste(Image.fromarray(pixels), (x + FRAME, y + FRAME))
        for line, (before, name, tail) in enumerate(lines):
            text = before + shorten(name, font, wide - font.getlength(before + tail)) + tail
            pen.text((x, y + side + line * LINE), text, INK, font)
    return strip.quantize(256, method=Image.Quantize.FASTOCTREE)


def save(folder: Path, step: int, strip: Image.Image) -> None:
    """Write the strip of a step to an attempt's `media` folder, and remove those that are kept no longer.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    content = io.BytesIO()
    strip.save(content, "png")
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{step}.png", content.getvalue())
    for path in folder.glob("[0-9]*.png"):
        if not kept(int(path.stem), step):
            path.unlink(missing_ok=True)


def kept(step: int, newest: int) -> bool:
    """Whether the strip of a step is kept: the newest, and every one, second, fourth, ... so that 16 are at most."""
    every = 2 ** max(0, math.ceil(math.log2(newest / MOST)))
    return step == newest or step % every == 0


def of_trial(trial: Path) -> dict[int, Path]:
    """The strips in a trial's folder by step; where two attempts reported the same step, the later one's."""
    paths = sorted(trial.glob("*/media/[0-9]*.png"), key=lambda path: int(path.parent.parent.name))
    return {int(path.stem): path for path in paths}


def shorten(text: str, font: Font, width: float) -> str:
    """The text, or its beginning and an ellipsis, so that it is at most `width` px wide."""
    if font.getlength(text) <= width:
        return text
    end = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + "…") <= width), 0)
    return text[:end] + "…"
