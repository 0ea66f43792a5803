"""The contact sheet: its size, what stands in its cells, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtune.augment import MAPPING_VERSION
from cvtune.errors import ConfigError
from cvtune.pixels import to_square
from cvtune.recipe import Augment
from cvtune.report.sheet import GAP, MAX_LABEL, contact_sheet, describe
from cvtune.strips import RIGHT

STRENGTHS = [0.0, 0.5, 1.0]


def cells(sheet: Image.Image, rows: int, columns: int, side: int) -> np.ndarray:
    """uint8 (rows, columns, side, side, 3), counted from the lower right corner of a sheet as wide as its columns."""
    pixels = np.asarray(sheet)
    step = side + GAP
    pixels = pixels[-rows * step :, -columns * step :]
    return np.array([[pixels[r * step :, c * step :][:side, :side] for c in range(columns)] for r in range(rows)])


def test_first_column_is_what_evaluation_sees_and_columns_differ(photos: list[np.ndarray]) -> None:
    strengths = [tenth / 10 for tenth in range(11)]
    sheet = contact_sheet(photos[:4], list("abcd"), Augment(), 96, "crop", strengths, seed=0)
    shown = cells(sheet, 4, 11, 96)
    for row in range(4):
        np.testing.assert_array_equal(shown[row, 0], to_square(photos[row], 96, "crop"))
        assert len({cell.tobytes() for cell in shown[row]}) > 5
    again = contact_sheet(photos[:4], list("abcd"), Augment(), 96, "crop", strengths, seed=0)
    assert sheet.mode == "RGB" and sheet.tobytes() == again.tobytes()


def test_tiny_images_are_enlarged_without_smoothing(photos: list[np.ndarray]) -> None:
    strengths = [0.0] * 9
    sheet = contact_sheet(photos[:2], ["x", "y"], Augment(), 40, "squash", strengths, seed=0)
    shown = cells(sheet, 2, 9, 120)[1, 0]
    np.testing.assert_array_equal(shown, to_square(photos[1], 40, "squash").repeat(3, axis=0).repeat(3, axis=1))


def test_long_labels_are_shortened_and_the_title_is_never_cut(photos: list[np.ndarray]) -> None:
    sheet = contact_sheet(photos[:1], ["long " * 100], Augment(), 96, "crop", [0.0] * 10, seed=0)
    assert sheet.width <= MAX_LABEL + 2 * GAP + 10 * (96 + GAP)
    narrow = np.asarray(contact_sheet(photos[:1], ["a"], Augment(), 96, "crop", [0.0], seed=0))
    assert (narrow[:28, -GAP:] == 255).all() and (narrow[:28, -3 * GAP :] != 255).any()


def test_title_names_policy_version_and_factors() -> None:
    title = describe(Augment(color=0.25, flip="both"), 64, "crop")
    for part in ("families", f"mapping {MAPPING_VERSION}", "color 0.25", "flip both", "64 px crop"):
        assert part in title
    assert "color" not in describe(Augment(policy="trivial"), 64, "crop")


@pytest.mark.parametrize(
    ("count", "labels", "strengths", "told"),
    [
        (0, [], STRENGTHS, "0 images"),
        (2, ["a"], STRENGTHS, "1 labels"),
        (1, ["a"], [], "0 strengths"),
        (1, ["a"], [0.0, 1.5], "1.5"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    count: int, labels: list[str], strengths: list[float], told: str, photos: list[np.ndarray]
) -> None:
    with pytest.raises(ConfigError, match=told):
        contact_sheet(photos[:count], labels, Augment(), 64, "crop", strengths, seed=0)


def test_it_can_be_saved(photos: list[np.ndarray], tmp_path: Path) -> None:
    contact_sheet(photos[:2], ["a", "b"], Augment(policy="trivial"), 64, "crop", STRENGTHS, 0).save(tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").size[0] > 3 * 96


def test_the_outline_of_a_mask_moves_with_its_image() -> None:
    mask = np.zeros((80, 80), np.uint8)
    mask[30:60, 20:40] = 1
    image = np.where(mask[..., None], np.uint8(250), np.uint8(5)).repeat(3, axis=2)
    augment = Augment(color=0, quality=0, occlusion=0)
    strengths = [tenth / 10 for tenth in range(11)]
    sheet = contact_sheet([image], ["a"], augment, 96, "crop", strengths, seed=3, masks=[mask])
    plain = contact_sheet([image], ["a"], augment, 96, "crop", strengths, seed=3)
    for drawn, bare in zip(cells(sheet, 1, 11, 96)[0], cells(plain, 1, 11, 96)[0], strict=True):
        changed = (drawn != bare).any(axis=2)
        assert changed.sum() > 40 and (drawn[changed] == RIGHT).all()
        beside = bare[..., 0].astype(int)  # an outline lies where bright meets dark
        steep = np.maximum(abs(np.gradient(beside)[0]), abs(np.gradient(beside)[1])) > 20
        assert (changed & steep).sum() > 0.95 * changed.sum()
