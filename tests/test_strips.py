"""Strips: the same images each time, right and wrong told apart without red and green, and never more than a few."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from cvtune import strips

CLASSES = ("cat", "dog", "a class of a very long name <b>")


def drawn(guesses: list[int], labels: list[int]) -> Image.Image:
    images = np.full((len(labels), 16, 16, 3), 200, np.uint8)
    probabilities = np.full((len(labels), 3), 0.1, np.float32)
    probabilities[np.arange(len(labels)), guesses] = 0.8
    return strips.draw(images, np.array(labels), probabilities, CLASSES)


def test_the_classes_come_in_turn_and_always_with_the_same_images() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    chosen = strips.choose(labels, 8)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert chosen.tolist() == strips.choose(labels, 8).tolist() and len(set(chosen.tolist())) == 8
    assert len(strips.choose(labels[:5], 8)) == 5 and not len(strips.choose(labels, 0))


def test_the_frame_says_whether_the_prediction_is_right() -> None:
    strip = np.asarray(drawn([0, 1], [0, 0]).convert("RGB")).astype(int)
    wide = strips.CELL + 2 * strips.FRAME + strips.GAP
    for place, color in enumerate((strips.RIGHT, strips.WRONG)):
        assert abs(strip[1, place * wide + 1] - color).max() <= 8  # a palette of 256 colors
    right, wrong = strip[:, :wide], strip[:, wide:]
    second = slice(-strips.LINE, None)
    assert (right[second] > 200).all() and (wrong[second] < 100).any()  # only there the right class is named


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (8, 1), (9, 2), (32, 4)])
def test_images_stand_in_rows_of_eight(count: int, rows: int) -> None:
    strip = drawn([2] * count, [1] * count)
    high = strips.CELL + 2 * strips.FRAME + 2 * strips.LINE + strips.GAP
    assert strip.height == rows * high
    assert strip.width == min(8, count) * (strips.CELL + 2 * strips.FRAME + strips.GAP)


@pytest.mark.parametrize("width", [0, 20, 1000])
def test_a_long_text_is_cut_to_its_width(width: float) -> None:
    font = ImageFont.load_default(size=strips.TEXT)
    short = strips.shorten(CLASSES[2], font, width)
    assert font.getlength(short) <= max(width, font.getlength("…"))
    assert (short == CLASSES[2]) == (width == 1000)


@pytest.mark.parametrize("last", [1, 16, 17, 100, 300])
def test_a_long_trial_keeps_a_few_the_newest_among_them(tmp_path: Path, last: int) -> None:
    media = tmp_path / "1" / "media"
    media.parent.mkdir()
    strip = Image.new("P", (2, 2))
    for step in range(1, last + 1):
        strips.save(media, step, strip)
    steps = sorted(strips.of_trial(tmp_path))
    assert steps[-1] == last and len(steps) <= strips.MOST + 1
    gaps = np.diff(steps[:-1])
    assert len(steps) > min(last, strips.MOST) // 2 and (not len(gaps) or len(set(gaps)) == 1)


def test_masks_are_outlined_and_told_by_their_overlap() -> None:
    images = np.full((5, 32, 32, 3), 200, np.uint8)
    masks, predicted = np.zeros((5, 32, 32), np.uint8), np.zeros((5, 32, 32), np.uint8)
    masks[:, 8:24, 8:24], masks[:, 0] = 1, 255
    predicted[:, 8:24, 8:24] = 1
    predicted[1:, 8:24, 16:24] = 0  # half of it
    strip = strips.draw_masks(images, masks, predicted, ("background", "nucleus"))
    side = strips.MASK_CELL + 2 * strips.FRAME
    assert strip.size == (4 * (side + strips.GAP), 2 * (side + 2 * strips.LINE + strips.GAP))
    assert strips.iou_of_classes(masks[1], predicted[1], 2) == {0: pytest.approx(736 / 864), 1: 0.5}
    pixels = np.asarray(strip.convert("RGB")).astype(int)
    inner = [pixels[strips.FRAME : side, place * (side + strips.GAP) + strips.FRAME :][:120, :120] for place in (0, 1)]
    near = [
        [(abs(cell - np.array(color)).max(axis=2) < 60).sum() for color in (strips.RIGHT, strips.WRONG)]
        for cell in inner
    ]
    assert near[0][0] > 200 and near[0][1] == 0  # the outlines of mask and prediction are one
    assert near[1][0] > 200 and near[1][1] > 20


def test_tags_are_framed_by_what_is_known() -> None:
    images = np.full((3, 16, 16, 3), 200, np.uint8)
    tags = np.array([[1, 0, np.nan], [1, 1, 0], [0, 0, 0]], np.float32)
    chances = np.array([[0.9, 0.1, 0.9], [0.9, 0.1, 0.1], [0.1, 0.1, 0.1]], np.float32)
    strip = np.asarray(strips.draw_tags(images, tags, chances, CLASSES).convert("RGB")).astype(int)
    wide = strips.CELL + 2 * strips.FRAME + strips.GAP
    for place, color in enumerate((strips.RIGHT, strips.WRONG, strips.RIGHT)):
        assert abs(strip[1, place * wide + 1] - color).max() <= 8
