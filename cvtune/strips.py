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
    font = ImageFont.load_default(size=TEXT)
    wide, high = CELL + 2 * FRAME + GAP, CELL + 2 * FRAME + 2 * LINE + GAP
    across = min(ACROSS, len(images))
    strip = Image.new("RGB", (across * wide, -(-len(images) // across) * high), PAPER)
    pen = ImageDraw.Draw(strip)
    predicted = probabilities.argmax(1)
    for place, (pixels, label, guess) in enumerate(zip(images, labels, predicted, strict=True)):
        x, y = place % across * wide, place // across * high
        side = CELL + 2 * FRAME
        pen.rectangle((x, y, x + side - 1, y + side - 1), RIGHT if guess == label else WRONG)
        enlarge = Image.Resampling.NEAREST if len(pixels) < CELL else Image.Resampling.BOX
        strip.paste(Image.fromarray(pixels).resize((CELL, CELL), enlarge), (x + FRAME, y + FRAME))
        said = [(guess, "")] if guess == label else [(guess, ""), (label, "is ")]
        for line, (k, before) in enumerate(said):
            tail = f"  {probabilities[place, k]:.0%}"
            text = before + shorten(classes[k], font, wide - font.getlength(before + tail)) + tail
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
