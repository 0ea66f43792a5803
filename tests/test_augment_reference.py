"""Each change of a photo beside albumentations' own, which defines it: equal pixels, or draws of equal distribution."""

from __future__ import annotations

from random import Random
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest

from cvtune.kinds import PHOTOS
from cvtune.pixels import (
    View,
    change_by_blur,
    change_by_jpeg,
    change_by_noise,
    change_by_patches,
    change_color,
    change_view,
    draw_view,
)

SIZE = 64
BORDER = cv2.BORDER_REFLECT


class Fixed(Random):
    """Every draw from [0, 1) is the same."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.fixture(scope="module")
def squares(photos: list[np.ndarray]) -> list[np.ndarray]:
    """The photos, uint8 (SIZE, SIZE, 3)."""
    return [np.ascontiguousarray(photo[16:80, 32:96]) for photo in photos]


def difference(made: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(made.astype(np.int16) - expected))


def reference(transform: Any, image: np.ndarray, seed: int = 0) -> np.ndarray:
    whole = A.Compose([transform], seed=seed)
    return np.asarray(whole(image=image)["image"])


@pytest.mark.parametrize("mirror", [(True, False), (False, True), (True, True)])
def test_flips(mirror: tuple[bool, bool], squares: list[np.ndarray]) -> None:
    flips = [flip(p=1) for flip, wanted in zip((A.HorizontalFlip, A.VerticalFlip), mirror, strict=True) if wanted]
    for square in squares[:4]:
        expected = reference(A.Sequential(flips, p=1), square)
        for view in (None, View()):  # alone, and as part of a warp
            np.testing.assert_array_equal(change_view(square, view, SIZE, "crop", mirror), expected)


@pytest.mark.parametrize(
    ("view", "affine"),
    [
        (View(turn=0.5), {"rotate": (15, 15)}),
        (View(turn=-1.0), {"rotate": (-30, -30)}),
        (View(right=6 / 6.4), {"translate_px": {"x": (-6, -6), "y": (0, 0)}}),
        (View(down=-3 / 6.4), {"translate_px": {"x": (0, 0), "y": (3, 3)}}),
        (View(area=0.25), {"scale": (2, 2)}),
    ],
    ids=str,
)
def test_views(view: View, affine: dict[str, Any], squares: list[np.ndarray]) -> None:
    """Where nothing shrinks: albumentations would not average."""
    for square in squares[:8]:
        expected = reference(A.Affine(**affine, border_mode=BORDER, p=1), square)
        apart = difference(change_view(square, view, SIZE, "crop"), expected)
        assert apart.mean() < 0.5 and apart.max() < 12


def beside_the_mean(photo: np.ndarray, view: View) -> tuple[float, float]:
    """How far a view that shrinks is from the means of 8 x 8 samples, of 255, and how many times as sharp it is."""
    wide = cv2.resize(photo, None, fx=8, fy=8, interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(change_view(wide, view, 8 * SIZE, "squash"), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    made = change_view(photo, view, SIZE, "squash")
    sharp, expected_sharp = (np.std(np.diff(image.astype(float), axis=0)) for image in (made, expected))
    return difference(made, expected).mean(), sharp / expected_sharp


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_a_view_that_shrinks_shows_the_mean_of_what_lies_in_each_pixel(
    strength: float, photos: list[np.ndarray]
) -> None:
    """Equally sharp, too (0.95 and 1.02). Without a filter it would be 1.16 times as sharp: aliased."""
    views = (draw_view(Random(seed), strength) or View() for seed in range(len(photos)))
    apart, sharper = np.mean([beside_the_mean(*pair) for pair in zip(photos, views, strict=True)], axis=0)
    assert apart < 1.2 and 0.93 < sharper < 1.1


@pytest.mark.parametrize("larger", [1.4, 2.0, 3.0, 4.5])
def test_a_view_that_shrinks_much_is_hardly_less_sharp(larger: float, photos: list[np.ndarray]) -> None:
    """From photos of 2.8 to 9 px for each pixel: pairs are averaged first, once to thrice."""
    wide = [cv2.resize(photo, None, fx=larger, fy=larger, interpolation=cv2.INTER_CUBIC) for photo in photos[::2]]
    views = (draw_view(Random(seed), 1.0) or View() for seed in range(len(wide)))
    apart, sharper = np.mean([beside_the_mean(*pair) for pair in zip(wide, views, strict=True)], axis=0)
    assert apart < 1.6 and 0.85 < sharper < 1.1


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_brightness_and_contrast(factor: float, squares: list[np.ndarray]) -> None:
    number, still = (factor - 0.5), {"saturation": (1, 1), "hue": (0, 0)}  # uniform in 1 +- 0.5
    for square in squares[:8]:
        gray = np.repeat(square[..., :1], 3, axis=2)  # albumentations weights the channels of the mean
        bright = A.ColorJitter(brightness=(factor, factor), contrast=(1, 1), **still, p=1)
        made = change_color(square, Fixed(number), brightness=0.5)
        assert difference(made, reference(bright, square)).max() <= 1
        differ = A.ColorJitter(brightness=(1, 1), contrast=(factor, factor), **still, p=1)
        made = change_color(gray, Fixed(number), contrast=0.5)
        assert difference(made, reference(differ, gray)).max() <= 2


@pytest.mark.parametrize("quality", [100, 75, 30])
def test_jpeg(quality: int, squares: list[np.ndarray]) -> None:
    class Asked(Random):
        def randint(self, a: int, b: int) -> int:
            assert (a, b) == (30, 100)
            return quality

    for square in squares[:4]:
        expected = reference(A.ImageCompression(quality_range=(quality, quality), p=1), square)
        np.testing.assert_array_equal(change_by_jpeg(square, Asked(), 30), expected)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0])
def test_blur(sigma: float, squares: list[np.ndarray]) -> None:
    for square in squares[:4]:
        expected = reference(A.GaussianBlur(sigma_limit=(sigma, sigma), blur_limit=0, p=1), square)
        assert difference(change_by_blur(square, Fixed(sigma), 1.0), expected).mean() < 0.6


def test_noise() -> None:
    """On gray, which clips nothing: as strong on average, as varied from image to image, and normal in shape."""
    gray, count, most = np.full((SIZE, SIZE, 3), 128, np.uint8), 300, 0.1
    theirs = A.Compose([A.GaussNoise(std_range=(0, most), p=1)], seed=0)
    sides = (
        [change_by_noise(gray, Random(seed), PHOTOS, most) for seed in range(count)],
        [theirs(image=gray)["image"] for _ in range(count)],
    )
    noise = [np.array(side).reshape(count, -1).astype(float) - 128 for side in sides]
    ours, expected = (each.std(axis=1) for each in noise)
    assert abs(ours.mean() - expected.mean()) < 4 * np.hypot(ours.std(), expected.std()) / np.sqrt(count)
    assert abs(ours.std() / expected.std() - 1) < 0.2
    for each in noise:
        strong = each[each.std(axis=1) > 10]
        scaled = (strong - strong.mean(axis=1, keepdims=True)) / strong.std(axis=1, keepdims=True)
        assert abs(np.mean(scaled**4) - 3) < 0.1 and abs(np.mean(scaled**3)) < 0.05
        assert np.abs(strong.mean(axis=1)).max() < 1
    first, second = noise[0][:2]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05  # each image has its own


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_patches(strength: float) -> None:
    """How much of an image is hidden, where, and by which values."""
    sides, count = (strength**0.5 / 6, strength**0.5 / 3), 600
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    theirs = A.Compose([A.CoarseDropout((1, 3), sides, sides, fill="random_uniform", p=1)], seed=0)
    ours = np.array([change_by_patches(black, Random(seed), PHOTOS, sides) for seed in range(count)])
    expected = np.array([theirs(image=black)["image"] for _ in range(count)])
    shares = [(side > 0).any(axis=-1).mean(axis=(1, 2)) for side in (ours, expected)]
    error = np.hypot(*(share.std() for share in shares)) / np.sqrt(count)
    rounding = 2 * 0.5 / (SIZE * sum(sides) / 2) * shares[1].mean()  # they cut sides off to whole px, we round
    assert abs(shares[0].mean() - shares[1].mean()) < 4 * error + rounding
    places = [(side > 0).any(axis=-1).mean(axis=0) for side in (ours, expected)]
    for axis in (0, 1):
        assert np.abs(places[0].mean(axis=axis) - places[1].mean(axis=axis)).max() < 0.05
    levels = [side[side > 0].mean() for side in (ours, expected)]
    assert abs(levels[0] - levels[1]) < 8
