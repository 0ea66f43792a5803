"""Training loops for `test_own_loop.py`: good ones and bad ones, each a few lines. No test is in here."""

from collections.abc import Iterator
from typing import Any

import torch

import cvtune
from cvtune import Epoch, Report
from cvtune.data import Part
from cvtune.own_loop import Run

HONORS = {"optim.lr", *cvtune.BATCHES}


def predict(run: Run, part: Part) -> torch.Tensor:
    return torch.zeros(len(part.labels), len(run.data.classes)) + run.state["weights"]


@cvtune.loop(honors=HONORS, predict=predict)
def good(run: Run) -> Iterator[Report]:
    """Counts, and keeps what it has counted as its state."""
    weights = torch.zeros(len(run.data.classes)) if run.state is None else run.state["weights"].clone()
    while True:
        for _, labels in run.batches():
            weights += torch.bincount(labels, minlength=len(weights)) * run.recipe.optim.lr
        yield cvtune.report_epoch(
            train_loss=float(weights.sum()),
            val_loss=torch.tensor(1.0),
            val_accuracy=0.5,
            state={"weights": weights, "steps": [run.step]},
        )


@cvtune.loop(honors=HONORS)
def forgetful(run: Run) -> Iterator[Report]:
    """Offers no state."""
    while not run.stop():
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=0.5)


def undecorated(run: Run) -> Iterator[Report]:
    yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0)


@cvtune.loop(honors=HONORS)
def no_generator(run: Run) -> int:
    return 3


@cvtune.loop(honors=HONORS)
def number(run: Run) -> Iterator[Any]:
    yield 0.5


def epoch_at(step: int) -> Epoch:
    return Epoch(**{**dict.fromkeys(cvtune.epoch.METRICS, 1.0), "step": step, "epoch": step, "parameters": 1})


@cvtune.loop(honors=HONORS)
def epochs(run: Run) -> Iterator[Epoch]:
    """Any generator of Epoch will do."""
    run.stop()
    for step in range(run.step + 1, 1000):
        yield epoch_at(step)


@cvtune.loop(honors=HONORS)
def goes_back(run: Run) -> Iterator[Epoch]:
    yield epoch_at(1)
    yield epoch_at(1)


@cvtune.loop(honors=HONORS)
def ends_early(run: Run) -> Iterator[Report]:
    run.stop()
    yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=0.5)


@cvtune.loop(honors=HONORS)
def nan(run: Run) -> Iterator[Report]:
    while not run.stop():
        yield cvtune.report_epoch(train_loss=float("nan"), val_loss=1.0, val_accuracy=0.5)


@cvtune.loop(honors=HONORS)
def unknown_metric(run: Run) -> Iterator[Report]:
    yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_acuracy=0.5)


@cvtune.loop(honors=HONORS)
def many_numbers(run: Run) -> Iterator[Report]:
    yield cvtune.report_epoch(train_loss=torch.ones(3), val_loss=1.0)


@cvtune.loop(honors=HONORS)
def odd_state(run: Run) -> Iterator[Report]:
    yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=0.5, state={"model": [{"seen": {1, 2}}]})


@cvtune.loop(honors=HONORS)
def never_asks(run: Run) -> Iterator[Report]:
    while True:
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=0.5)


@cvtune.loop(honors=HONORS)
def without_objective(run: Run) -> Iterator[Report]:
    while not run.stop():
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0)


@cvtune.loop(honors=HONORS)
def cannot_resume(run: Run) -> Iterator[Report]:
    while not run.stop():
        if run.state is not None:
            raise KeyError("weights")
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=0.5, state={"other": 1})


@cvtune.loop(honors=HONORS, predict=lambda run, part: torch.zeros(1, 3))
def odd_predict(run: Run) -> Iterator[Report]:
    while not run.stop():
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=0.5, state={"a": 1})
