"""Augmentation of a batch on its device beside that of one image, which defines it: by pixels and by distribution."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from cvtune.augment import Pipeline
from cvtune.data.dataset import Part
from cvtune.data.loader import Loader, sample_seed, sample_seeds
from cvtune.device_augment import DevicePipeline, uniform
from cvtune.device_loader import DeviceLoader, flatten
from cvtune.device_pixels import Colors, Views, blur, color, grain, jpeg, patches, samples_for, warp
from cvtune.pixels import View, change_by_blur, change_by_jpeg, change_color, change_view, draw_view, to_square
from cvtune.recipe import Augment

SIZE = 48
CPU = torch.device("cpu")


class Told(Random):
    """Draws that were written down before."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.numbers.pop(0)

    def randint(self, a: int, b: int) -> int:
        return a + int((b + 1 - a) * self.numbers.pop(0))


def batch_of(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float()


@pytest.fixture(scope="module")
def squares(photos: list[np.ndarray]) -> list[np.ndarray]:
    """The photos, uint8 (SIZE, SIZE, 3)."""
    return [to_square(photo, SIZE, "crop") for photo in photos]


def views(drawn: list[View], mirror: list[tuple[bool, bool]]) -> Views:
    columns = [torch.tensor(column, dtype=torch.float32) for column in zip(*drawn, strict=True)]
    return Views(*columns, *(torch.tensor(swapped) for swapped in zip(*mirror, strict=True)))


def apart(made: Tensor, expected: list[np.ndarray]) -> float:
    """The mean difference, of 255."""
    return (made.clamp(0, 255) - batch_of(expected)).abs().mean().item()


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_views_show_what_those_of_one_image_show(fit: str, strength: float, photos: list[np.ndarray]) -> None:
    random = Random(3)
    drawn = [draw_view(random, strength) or View() for _ in photos]
    mirror = [(random.random() < 0.5, random.random() < 0.5) for _ in photos]
    made = warp(flatten(photos, lambda image: image), views(drawn, mirror), SIZE, fit, 2)
    expected = [
        change_view(photo, view, SIZE, fit, swapped) for photo, view, swapped in zip(photos, drawn, mirror, strict=True)
    ]
    nothing = [change_view(photo, View(), SIZE, fit) for photo in photos]
    assert apart(made, expected) < 0.1 * apart(batch_of(nothing), expected)


def test_a_view_of_the_whole_of_a_square_is_that_square(squares: list[np.ndarray]) -> None:
    whole = views([View()] * len(squares), [(False, False)] * len(squares))
    assert apart(warp(flatten(squares, lambda image: image), whole, SIZE, "crop"), squares) == 0


def test_colors_are_those_of_one_image(squares: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.random((len(squares), 4))
    amounts = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    expected = [
        change_color(square, Told(*row, 1.0), **amounts) for square, row in zip(squares, numbers.tolist(), strict=True)
    ]
    bright, differ, vivid, turn = torch.from_numpy(2 * numbers - 1).float().unbind(1)
    colors = Colors(1 + 0.4 * bright, 1 + 0.4 * differ, 1 + 0.4 * vivid, 2 * np.pi * 0.1 * turn)
    assert apart(color(batch_of(squares), colors), expected) < 0.51  # which rounding alone makes


def test_blur_is_that_of_one_image(squares: list[np.ndarray]) -> None:
    sigma = np.linspace(0.05, 1.5, len(squares))
    expected = [change_by_blur(square, Told(s / 2), 2.0) for square, s in zip(squares, sigma, strict=True)]
    made = blur(batch_of(squares), torch.from_numpy(sigma).float(), 2.0)
    assert apart(made, expected) < 0.6
    assert torch.equal(blur(batch_of(squares), torch.zeros(len(squares)), 2.0), batch_of(squares))


def test_jpeg_leaves_what_it_leaves_of_one_image(photos: list[np.ndarray]) -> None:
    odd = [np.ascontiguousarray(to_square(photo, 40, "crop")) for photo in photos]  # no multiple of 16
    quality = np.linspace(30, 99, len(odd)).round()
    expected = [change_by_jpeg(photo, Told(0.0), int(q)) for photo, q in zip(odd, quality, strict=True)]
    made = jpeg(batch_of(odd), torch.from_numpy(quality).float())
    assert apart(made, expected) < 1.0 < 0.3 * apart(batch_of(odd), expected)  # it rounds more than once


def test_noise_has_the_spread_it_is_given(squares: list[np.ndarray]) -> None:
    gray = torch.full((4, SIZE, SIZE, 3), 128.0)
    std, store = torch.tensor([0.0, 3.0, 9.0, 25.0]), torch.randn(10**5, generator=torch.Generator().manual_seed(0))
    noise = grain(gray, std, store, torch.tensor([0.0, 0.1, 0.5, 0.999])) - 128
    assert noise.std((1, 2, 3)).tolist() == pytest.approx(std.tolist(), rel=0.03)
    assert not noise[0].any() and noise.mean((1, 2, 3)).abs().max() < 0.5


def test_patches_cover_the_area_of_their_sides() -> None:
    numbers = uniform(torch.arange(4000), 22)
    dark = torch.zeros(4000, SIZE, SIZE, 3) - 1
    covered = (patches(dark, numbers, (0.2, 0.2)) >= 0).all(-1).float().mean((1, 2))
    side = round(0.2 * SIZE) / SIZE
    many = (3 * numbers[:, 0]).floor() + 1
    assert covered[many == 1].tolist() == pytest.approx([side**2] * int((many == 1).sum()))
    assert covered[many == 3].max() <= 3 * side**2 + 1e-6 and covered.mean() > 1.8 * side**2
    assert ((patches(dark, numbers, (0.2, 0.2)) >= 0).all(-1).float().mean(0) > 0).all()  # anywhere


def test_numbers_are_uniform_and_each_seed_has_its_own() -> None:
    numbers = uniform(torch.from_numpy(sample_seeds(7, np.arange(5000)).view(np.int64)), 8)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert (numbers.mean(0) - 0.5).abs().max() < 0.015 and (numbers.var(0) - 1 / 12).abs().max() < 0.003
    assert np.abs(np.corrcoef(numbers.T.numpy()) - np.eye(8)).max() < 0.06
    assert len(np.unique(numbers.numpy())) > 0.99 * numbers.numel()
    assert torch.equal(uniform(torch.tensor([5]), 8), uniform(torch.tensor([4, 5]), 8)[1:])


def test_seeds_of_a_batch_are_those_of_its_images() -> None:
    tickets = np.array([0, 3, 10**6, 2**40])
    assert sample_seeds(11, tickets).tolist() == [sample_seed(11, int(ticket)) for ticket in tickets]


@pytest.mark.parametrize("family", ["geometry", "color", "quality", "occlusion"])
@pytest.mark.parametrize("strength", [0.1, 0.6, 1.0])
def test_images_change_as_much_as_one_by_one(family: str, strength: float, squares: list[np.ndarray]) -> None:
    """The mean change of an image and its spread over draws, which tell a wrong chance or magnitude."""
    off = dict.fromkeys(("geometry", "color", "quality", "occlusion"), 0.0) | {family: 1.0}
    make = Pipeline(Augment(strength=strength, flip="both", **off), SIZE)
    draws = 600
    rows = torch.arange(draws) % len(squares)
    photos = flatten(squares, lambda image: image)
    before = batch_of(squares)[rows]
    made = DevicePipeline(make, SIZE)(photos.pick(rows), torch.arange(draws) * 7919)
    ours = (made - before).abs().mean((1, 2, 3)).numpy()
    one = np.stack([make(squares[row], seed) for seed, row in enumerate(rows.tolist())])
    theirs = np.abs(one - before.numpy()).mean((1, 2, 3))
    for level in (0.25, 0.5, 0.75, 0.95):
        low, high = (np.quantile(theirs, np.clip(level + step, 0, 1)) for step in (-0.06, 0.06))
        assert low - 0.6 <= np.quantile(ours, level) <= high + 0.6
    assert abs(ours.mean() - theirs.mean()) < 4 * theirs.std() / draws**0.5 + 0.5


def test_without_strength_images_are_what_evaluation_sees(photos: list[np.ndarray]) -> None:
    part = Part(photos, np.zeros(len(photos), np.int64))
    make, order = Pipeline(Augment(strength=0.0), SIZE), np.arange(len(photos))
    (batch,) = DeviceLoader(part, CPU, records=False).batches(order, len(order), make, 3)
    assert apart(batch.images, [to_square(photo, SIZE, "crop") for photo in photos]) == 0


def test_batches_depend_on_image_order_and_seed_alone(photos: list[np.ndarray]) -> None:
    labels = np.arange(len(photos))
    part = Part(photos, labels, weights=np.linspace(0, 1, len(photos), dtype=np.float32))
    make = Pipeline(Augment(strength=0.7), SIZE)
    order = np.array([3, 1, 2, 1, 0, 4, 5])
    loader = DeviceLoader(part, CPU, records=False)
    whole, (first, *_) = list(loader.batches(order, 7, make, 5)), list(loader.batches(order, 3, make, 5))
    assert torch.equal(whole[0].images[:3], first.images)
    assert not torch.equal(whole[0].images[1], whole[0].images[3])  # drawn twice, changed twice
    assert whole[0].targets.tolist() == order.tolist()
    assert torch.equal(whole[0].weights, torch.from_numpy(part.weights[order]))
    sizes = [len(batch.targets) for batch in loader.batches(order, 3, make, 5)]
    assert sizes == [len(batch.targets) for batch in Loader(part, 0, False).batches(order, 3, make, 5)] == [3, 3]
    half = next(loader.batches(order, 6, make, 5, lambda count: slice(count // 2, count)))
    assert torch.equal(half.images, whole[0].images[3:6])


def test_images_that_shrink_much_are_sampled_finely() -> None:
    assert [samples_for(scale) for scale in (0.7, 1.0, 1.74, 2.5, 5.0)] == [1, 1, 1, 2, 3]
    lines = np.zeros((240, 240, 3), np.uint8)
    lines[:, ::2] = 255  # one sample for each fifth pixel would show them as broad stripes
    whole = views([View()], [(False, False)])
    made = warp(flatten([lines], lambda image: image), whole, SIZE, "crop", samples_for(5.0))
    assert made.std() < 15 and made.mean().item() == pytest.approx(127.5, abs=3)
