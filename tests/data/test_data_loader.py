"""Batches: the same bits for any number of workers, any batch size and after any interruption."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtune.augment import Pipeline
from cvtune.data import Dataset, Part, open_dataset
from cvtune.data.loader import (
    Batch,
    Loader,
    derived_seed,
    epoch_order,
    evaluation_batch,
    evaluation_targets,
    report_order,
    sample_seed,
    subset,
)
from cvtune.pixels import to_square
from cvtune.recipe import Augment, Data
from cvtune.sections import Source

LABELS = np.repeat(np.arange(3), [600, 300, 100])


@dataclass(frozen=True)
class Stamp:
    """Writes its seed and the image's first pixel into the result, so that a test can read who made what."""

    side: int = 8

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        result = np.zeros((self.side, self.side, 3), np.uint8)
        result.reshape(-1)[:8] = np.frombuffer(seed.to_bytes(8, "little"), np.uint8)
        result[-1, -1] = image[0, 0]
        return result


@pytest.fixture(scope="module")
def dataset(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    cache = tmp_path_factory.mktemp("cache")
    return open_dataset(Source(source=str(photo_folder)), Data(image_size=32), cache, None, 1)


def together(batches: Iterator[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels, _ = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def seeds(images: torch.Tensor) -> list[int]:
    return [int.from_bytes(image.reshape(-1)[:8].tolist(), "little") for image in images.numpy()]


def test_the_same_bits_for_any_number_of_workers(dataset: Dataset) -> None:
    here, there = (Loader(dataset.train, workers, pin=False) for workers in (0, 2))
    for epoch, strength in enumerate((0.0, 0.6, 1.0)):  # a changed pipeline reaches workers that live on
        order = epoch_order(dataset.train.labels, epoch, oversample=0.5 * epoch)
        make = Pipeline(Augment(strength=strength), 32)
        expected = list(here.batches(order, 16, make, epoch))
        got = list(there.batches(order, 16, make, epoch))
        assert [len(batch.targets) for batch in got] == [16, 16, 10]
        for (images, labels, _), (other_images, other_labels, _) in zip(expected, got, strict=True):
            assert (images.dtype, images.shape[1:], labels.dtype) == (torch.uint8, (32, 32, 3), torch.int64)
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
        next(there.batches(order, 16, make, 99))  # an epoch that is given up does not leak into the next
    assert here.waited > 0
    assert there.waited > 0


def test_each_image_gets_its_own_seed_whatever_the_batches(dataset: Dataset) -> None:
    loader = Loader(dataset.train, 0, pin=False)
    order = epoch_order(dataset.train.labels, 1, 0)
    images, labels = together(loader.batches(order, 10, Stamp(), seed=5))
    assert seeds(images) == [sample_seed(5, int(i)) for i in order]
    assert labels.tolist() == dataset.train.labels[order].tolist()
    assert images[:, -1, -1].tolist() == [dataset.train.images[int(i)][0, 0].tolist() for i in order]
    assert torch.equal(together(loader.batches(order, 7, Stamp(), seed=5))[0], images)


def test_an_image_drawn_twice_is_augmented_twice(dataset: Dataset) -> None:
    order = np.array([3, 7, 3, 3, 7])
    images, _ = together(Loader(dataset.train, 0, pin=False).batches(order, 4, Stamp(), seed=0))
    total = len(dataset.train.labels)
    expected = [sample_seed(0, ticket) for ticket in (3, 7, 3 + total, 3 + 2 * total)]
    assert seeds(images) == expected  # a last batch of one image is left out: batch norm has nothing to compare it with


def test_seeds_are_far_apart() -> None:
    drawn = {sample_seed(seed, i) for seed in range(100) for i in range(100)}
    assert len(drawn) == 10_000
    assert all(0 <= seed < 2**64 for seed in drawn)
    ones = [seed.bit_count() for seed in drawn]
    assert 31.8 < np.mean(ones) < 32.2


def test_epoch_order_without_oversampling_is_a_permutation() -> None:
    order = epoch_order(LABELS, 3, 0)
    assert sorted(order) == list(range(1000))
    assert np.array_equal(order, epoch_order(LABELS, 3, 0))
    assert not np.array_equal(order, epoch_order(LABELS, 4, 0))


@pytest.mark.parametrize(
    ("oversample", "expected"), [(1e-9, (0.6, 0.3, 0.1)), (0.5, (0.467, 0.317, 0.217)), (1, (1 / 3, 1 / 3, 1 / 3))]
)
def test_oversampling_moves_frequencies_towards_balance(oversample: float, expected: tuple[float, ...]) -> None:
    drawn = np.concatenate([epoch_order(LABELS, seed, oversample) for seed in range(20)])
    assert len(drawn) == 20 * len(LABELS)
    np.testing.assert_allclose(np.bincount(LABELS[drawn]) / len(drawn), expected, atol=0.015)


@pytest.mark.parametrize("images", [8, 250, 999, 1000])
def test_reports_cut_passes_into_pieces(images: int) -> None:
    passes = np.concatenate([epoch_order(LABELS, derived_seed(3, number), 0) for number in range(20)])
    pieces = [report_order(LABELS, 3, step, 0, images) for step in range(10)]
    assert {len(piece) for piece in pieces} == {images}
    np.testing.assert_array_equal(np.concatenate(pieces), passes[: 10 * images])
    rounds = -(-1000 // images)
    if rounds <= 10:
        assert set(np.concatenate(pieces[:rounds])) == set(range(1000))


@pytest.mark.parametrize("oversample", [0, 0.5])
def test_a_report_of_all_images_is_a_pass(oversample: float) -> None:
    for step in (0, 7):
        order = epoch_order(LABELS, derived_seed(3, step), oversample)
        np.testing.assert_array_equal(report_order(LABELS, 3, step, oversample, len(LABELS)), order)


def test_oversampled_reports_are_drawn_each_for_itself() -> None:
    pieces = [report_order(LABELS, 3, step, 1, 60) for step in range(100)]
    assert {len(piece) for piece in pieces} == {60}
    assert len({piece.tobytes() for piece in pieces}) == 100
    np.testing.assert_allclose(np.bincount(LABELS[np.concatenate(pieces)]) / 6000, 1 / 3, atol=0.02)


def test_subset_is_stratified_nested_and_never_loses_a_class() -> None:
    tenth, half = subset(LABELS, 0.1, 0), subset(LABELS, 0.5, 0)
    assert np.bincount(LABELS[tenth]).tolist() == [60, 30, 10]
    assert set(tenth) < set(half)
    assert np.array_equal(half, np.sort(half))
    assert np.array_equal(subset(LABELS, 1.0, 7), np.arange(1000))
    assert Counter(LABELS[subset(LABELS, 1e-6, 0)].tolist()) == {0: 1, 1: 1, 2: 1}
    assert not np.array_equal(tenth, subset(LABELS, 0.1, 1))


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_evaluation_batch(dataset: Dataset, fit: str) -> None:
    batch = evaluation_batch(dataset.val.images, [4, 1], 24, fit)  # type: ignore[arg-type]
    assert (batch.dtype, batch.shape) == (np.uint8, (2, 24, 24, 3))
    np.testing.assert_array_equal(batch[1], to_square(dataset.val.images[1], 24, fit))
    still = Pipeline(Augment(strength=0), 24, fit)
    np.testing.assert_array_equal(batch[0], still(dataset.val.images[4], 0))


def test_nothing_but_the_loader_needs_torch() -> None:
    code = "import sys, cvtune.data, cvtune.usercode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_order_no_batches(dataset: Dataset) -> None:
    loader = Loader(dataset.train, 0, pin=True)
    assert not list(itertools.chain(*(loader.batches(np.arange(n), 4, Stamp(), 0) for n in (0, 1))))


# --- what is learned beside a class ---------------------------------------------------------------------------------


def with_masks(n: int = 30) -> Part:
    """Images whose first channel is their mask, with weights."""
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, (40, 50), dtype=np.uint8).repeat(2, 0).repeat(2, 1)[:40, :50] for _ in range(n)]
    images = [np.stack([mask, mask, mask], axis=2) * 200 for mask in masks]
    return Part(images, np.zeros(n, np.int64), masks=masks, weights=np.arange(n, dtype=np.float32))


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_come_along_with_their_images(workers: int) -> None:
    part, make = with_masks(), Pipeline(Augment(strength=0.7), 24)
    order = np.array([4, 9, 4, 20, 7])
    batches = list(Loader(part, workers, pin=False).batches(order, 3, make, seed=5))
    assert [type(batch) for batch in batches] == [Batch, Batch]
    images, masks, weights = (torch.cat([batch[k] for batch in batches]) for k in range(3))
    assert (masks.dtype, masks.shape, weights.tolist()) == (torch.uint8, (5, 24, 24), order.tolist())
    tickets = [4, 9, 4 + 30, 20, 7]
    for image, mask, i, ticket in zip(images, masks, order, tickets, strict=True):
        expected = make.with_mask(part.images[i], part.masks[i], sample_seed(5, ticket))
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(mask, expected[1])


def test_tags_are_the_targets_of_a_part_that_has_them(dataset: Dataset) -> None:
    tags = np.random.default_rng(0).random((len(dataset.train.labels), 5)).astype(np.float32)
    part = Part(dataset.train.images, dataset.train.labels, tags=tags)
    images, targets, weights = next(Loader(part, 0, pin=False).batches(np.array([3, 1]), 2, Stamp(), seed=0))
    np.testing.assert_array_equal(targets, tags[[3, 1]])
    assert weights is None and len(images) == 2
    np.testing.assert_array_equal(evaluation_targets(part, np.array([3, 1]), 24, "crop"), tags[[3, 1]])


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_evaluation_targets_are_labels_or_masks_as_evaluation_sees_the_images(dataset: Dataset, fit: str) -> None:
    labels = evaluation_targets(dataset.val, np.array([4, 1]), 24, fit)  # type: ignore[arg-type]
    assert (labels.dtype, labels.tolist()) == (torch.int64, dataset.val.labels[[4, 1]].tolist())
    part = with_masks()
    masks = evaluation_targets(part, np.array([4, 1]), 24, fit)  # type: ignore[arg-type]
    still = Pipeline(Augment(strength=0), 24, fit)
    np.testing.assert_array_equal(masks[1], still.with_mask(part.images[1], part.masks[1], 0)[1])


ORPHANED = """
import os, signal, threading, time
import numpy as np
from cvtune.data import Part
from cvtune.data.loader import Loader


def stuck(image, seed):
    while True:
        time.sleep(0.1)


images = np.zeros((64, 8, 8, 3), np.uint8)
loader = Loader(Part(images, np.zeros(64, np.int64)), 1, False)
made = loader.batches(np.arange(64), 8, stuck, 0)
threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
next(made)
"""


def test_a_loader_that_hangs_does_not_outlive_its_trial() -> None:
    """It holds the connections of the trial's process, here its output, so that others would not see that one's end."""
    done = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_new_pass_ends_the_one_under_way(workers: int, dataset: Dataset) -> None:
    loader = Loader(dataset.train, workers, pin=False)
    first = loader.batches(np.arange(12), 3, Stamp(), seed=0)
    next(first)
    second = loader.batches(np.arange(6), 3, Stamp(), seed=1)
    images = [next(second).images]
    assert list(first) == []
    images += [batch.images for batch in second]
    alone, _ = together(Loader(dataset.train, 0, pin=False).batches(np.arange(6), 3, Stamp(), seed=1))
    assert np.array_equal(np.concatenate(images), alone)
    loader.close()


def test_workers_end_when_their_loader_is_closed_whoever_still_holds_it(dataset: Dataset) -> None:
    loader = Loader(dataset.train, 2, pin=False)
    batches = loader.batches(np.arange(12), 3, Stamp(), seed=0)
    next(batches)
    workers = set(multiprocessing.active_children())
    assert len(workers) == 2
    loader.close()
    assert not workers & set(multiprocessing.active_children())
    assert list(batches) == []
    loader.close()
