"""Training: learns, resumes bit for bit, follows changes, stops when asked."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtune import checkpoint
from cvtune.data import Dataset, Part, open_dataset
from cvtune.epoch import METRICS, Epoch
from cvtune.recipe import Recipe
from cvtune.study import Source
from cvtune.train import Run, train

SMALL = Recipe().replace(
    {
        "data.image_size": 16,
        "model.width": 4,
        "max_epochs": 4,
        "augment.flip": "none",
        "data.train_fraction": 0.3,
        "optim.lr": 1e-2,
    }
)
TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(Source(source="digits"), SMALL.data, tmp_path_factory.mktemp("cache"), None, 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a trial with one core: that is also what trains in the channels-last layout."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(epoch: Epoch) -> dict[str, float]:
    """What must be the same in a repeated run: everything but times."""
    return {name: value for name, value in epoch.numbers().items() if name not in TIMES}


def test_it_learns_and_every_number_is_sane(digits: Dataset) -> None:
    epochs = list(train(Run(SMALL.replace({"max_epochs": 5, "data.train_fraction": 1.0}), digits)))
    assert epochs[-1].val_accuracy > 0.85
    assert [e.step for e in epochs] == [e.epoch for e in epochs] == [1, 2, 3, 4, 5]
    last = epochs[-1].numbers()
    assert set(last) == set(METRICS) and all(math.isfinite(v) for v in last.values())
    assert all(
        0 <= last[n] <= 1
        for n in last
        if "accuracy" in n or n in ("val_ece", "val_macro_f1", "data_wait", "zero_weights")
    )
    assert last["grad_norm"] > 0 and last["images_per_second"] > 0 and last["peak_memory"] > 0
    assert epochs[0].lr > 0 and epochs[-1].lr < epochs[1].lr  # warm-up, then cosine


VARIANTS = {
    "adamw": {},
    "sgd, ema, clipped": {"optim.name": "sgd", "optim.ema": 0.9, "optim.clip_norm": 1.0},
    "mixed, accumulated": {"augment.mixup": 0.4, "augment.cutmix": 1.0, "optim.accumulate": 3, "data.batch_size": 20},
    "penalized, oversampled": {
        "regularize.l1": 1e-3,
        "regularize.l2": 1e-3,
        "data.oversample": 0.5,
        "optim.name": "rmsprop",
        "optim.lr": 1e-3,
    },
    "frozen, changed": {"model.freeze_epochs": 1, "changes": [[2, {"augment.strength": 0.9, "optim.lr": 1e-3}]]},
}


@pytest.mark.parametrize(("variant", "threads"), [*((name, 1) for name in VARIANTS), ("adamw", 2)])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    digits: Dataset, tmp_path: Path, variant: str, threads: int
) -> None:
    torch.set_num_threads(threads)  # several train in the contiguous layout
    recipe = SMALL.replace(VARIANTS[variant])
    whole = [numbers(e) for e in train(Run(recipe, digits))]
    halves, first = [], Run(recipe, digits)
    for epoch in train(first):
        halves.append(numbers(epoch))
        if epoch.epoch == 2:
            checkpoint.save(tmp_path / "2", first.state_dict(), epoch.numbers())
            break
    torch.manual_seed(123)
    np.random.seed(123)
    second = Run(recipe, digits)
    state, _ = checkpoint.load(tmp_path / "2")
    second.load_state_dict(state)
    halves += [numbers(e) for e in train(second)]
    assert halves == whole


def test_workers_change_no_number(digits: Dataset) -> None:
    recipe = SMALL.replace({"max_epochs": 2})
    alone = [numbers(e) for e in train(Run(recipe, digits))]
    helped = [numbers(e) for e in train(Run(recipe, digits, workers=2))]
    assert alone == helped


def test_seeds_decide(digits: Dataset) -> None:
    one = SMALL.replace({"max_epochs": 1})
    a, b, c = (numbers(next(train(Run(r, digits)))) for r in (one, one, one.replace({"seed": 1})))
    assert a == b != c


def test_changes_reach_the_effective_numbers(digits: Dataset) -> None:
    recipe = SMALL.replace(
        {
            "optim.schedule": "constant",
            "optim.warmup_epochs": 0,
            "changes": [[2, {"optim.lr": 5e-3, "regularize.weight_decay": 0.7}]],
        }
    )
    epochs = list(train(Run(recipe, digits)))
    assert [round(e.lr, 6) for e in epochs] == [0.01, 0.01, 0.005, 0.005]
    assert [e.weight_decay for e in epochs[2:]] == [0.7, 0.7] and epochs[0].weight_decay != 0.7


def test_stop_ends_between_batches_without_a_report(digits: Dataset) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 9

    run = Run(SMALL, digits)
    epochs = list(train(run, stop))
    assert len(epochs) == run.epoch == 1  # six batches an epoch: the second one was broken off
    assert asked == 10


def test_a_rate_far_too_high_gives_an_epoch_that_says_so(digits: Dataset) -> None:
    recipe = SMALL.replace({"optim.name": "sgd", "optim.lr": 100.0, "optim.warmup_epochs": 0, "model.norm": "none"})
    assert any(not e.is_finite() for e in train(Run(recipe, digits)))


def test_the_test_part_is_never_read(digits: Dataset) -> None:
    class Forbidden:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> np.ndarray:
            raise AssertionError("test was read")

    hidden = dataclasses.replace(digits, test=Part(Forbidden(), np.zeros(3, np.int64)))
    assert len(list(train(Run(SMALL.replace({"max_epochs": 1}), hidden)))) == 1


def test_l1_makes_weights_exactly_zero_and_the_share_is_reported(digits: Dataset) -> None:
    shares = [
        next(train(Run(SMALL.replace({"max_epochs": 1, "regularize.l1": l1}), digits))).zero_weights
        for l1 in (0.0, 0.3)
    ]
    assert shares[0] == 0.0 and shares[1] > 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_too_and_takes_up_a_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    recipe = SMALL.replace({"data.train_fraction": 1.0, "max_epochs": 6, "optim.ema": 0.9})
    run = Run(recipe, digits)
    assert run.device.type == "cuda" and run.layout is torch.channels_last
    epochs = []
    for epoch in train(run):
        epochs.append(epoch)
        if epoch.epoch == 3:
            checkpoint.save(tmp_path / "3", run.state_dict(), epoch.numbers())
            break
    again = Run(recipe, digits)
    again.load_state_dict(checkpoint.load(tmp_path / "3")[0])
    epochs += list(train(again))
    assert [e.epoch for e in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1].val_accuracy > 0.85 and 0 < epochs[-1].peak_memory < 4000
