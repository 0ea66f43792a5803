"""The noise floor: the spread over seeds, and how well few seeds know it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cvtune.event import Event
from cvtune.history import History
from cvtune.noise import noise_floor, score
from cvtune.study import Study


def told(curves: dict[str, list[float | None]], reason: str | None = "completed", **epoch: Any) -> History:
    """The history of some noise trials, given the objective after each epoch."""
    history = History()
    for index, (trial, curve) in enumerate(curves.items()):
        proposed = {"trial": trial, "index": index, "role": "noise", "label": "", "values": {}, "recipe": {}}
        history.apply(Event({"kind": "trial", "t": 0.0, "waiting": False, **proposed}))
        for step, value in enumerate(curve, 1):
            last = step == len(curve)
            report = {"step": step, "epoch": step, "val_accuracy": value, "val_loss": value, "seconds": 1.0, **epoch}
            end = {"reason": reason if last else None, "message": ""}
            history.apply(
                Event({"kind": "epoch", "trial": trial, "t": 1.0, "answer": "go", "acts": [], **report, **end})
            )
    return history


def test_floor_is_the_spread_of_the_best_epochs() -> None:
    history = told({"a": [0.5, 0.9, 0.8], "b": [0.91, 0.2], "c": [None, 0.95]})
    floor = noise_floor(Study(objective="val_accuracy"), history)
    assert floor is not None
    assert (floor.seeds, floor.sd) == (3, pytest.approx(np.std([0.9, 0.91, 0.95], ddof=1)))
    assert floor.mean == pytest.approx(0.92)
    assert f"{floor.sd:.2g}" in floor.sentence() and f"{floor.interval[1]:.2g}" in floor.sentence()


def test_score_follows_the_direction_of_the_objective_and_the_limits() -> None:
    record = told({"a": [3.0, 1.0, 2.0]}).trials["a"]
    assert score(Study(objective="val_loss"), record) == 1.0
    assert score(Study(objective="val_accuracy"), record) == 3.0
    limited = Study(objective="val_loss", limits={"seconds": 0.5})
    assert score(limited, record) is None
    assert noise_floor(limited, told({"a": [1.0], "b": [2.0]})) is None


@pytest.mark.parametrize("reason", [None, "stopped_budget", "diverged", "infra_lost"])
def test_unfinished_trials_do_not_count(reason: str | None) -> None:
    history = told({"a": [0.5], "b": [0.6], "c": [0.7]}, reason)
    assert noise_floor(Study(objective="val_accuracy"), history) is None


def test_one_seed_has_no_spread() -> None:
    assert noise_floor(Study(objective="val_accuracy"), told({"a": [0.5]})) is None
    assert noise_floor(Study(objective="val_accuracy"), History()) is None


def test_interval_covers_the_true_deviation_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        scores = rng.normal(0.9, 0.02, size=3)
        floor = noise_floor(Study(objective="val_accuracy"), told({str(i): [float(v)] for i, v in enumerate(scores)}))
        assert floor is not None and floor.interval[0] <= floor.sd <= floor.interval[1]
        hits += floor.interval[0] <= 0.02 <= floor.interval[1]
    assert 0.92 <= hits / 400 <= 0.98
    assert floor.interval[1] / floor.sd == pytest.approx(np.sqrt(2 / stats.chi2.ppf(0.025, 2)))


def test_equal_scores_are_said_to_be_equal_and_no_rounding_is_taken_for_noise() -> None:
    floor = noise_floor(Study(objective="val_accuracy"), told({name: [0.99624060150376] for name in "abc"}))
    assert floor is not None and floor.sd == 0 and "All 3 seeds" in floor.sentence() and not floor.spread
