"""Controls: the replay decides as the real scheduler does, and the answer is right where it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cvtune.board import Board
from cvtune.controls import NEEDED, rungs, simulate, strength, would_have_stopped
from cvtune.event import Event
from cvtune.history import History
from cvtune.recipe import Recipe
from cvtune.schedulers import ASHA, FIFO
from cvtune.space import Uniform, space
from cvtune.study import Study

SPACE = space({"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1)})


def study_of(scheduler: ASHA | FIFO, max_epochs: int, **fields: Any) -> Study:
    return Study(
        recipe=Recipe(max_epochs=max_epochs),
        space=SPACE,
        scheduler=scheduler,
        **{"objective": "val_accuracy", **fields},
    )


def told(study: Study, curves: np.ndarray, points: np.ndarray, reason: str = "completed") -> History:
    """The history of control trials that reported these curves (trials, epochs) of the objective."""
    history = History()
    for index, (curve, point) in enumerate(zip(curves.tolist(), points.tolist(), strict=True)):
        values = dict(zip(study.space.domains, point, strict=True))
        recipe = study.trial(index, values).model_dump(mode="json")
        event = {"trial": f"{index:05d}", "index": index, "role": "control", "label": "", "values": values}
        history.apply(Event({"kind": "trial", "t": 0.0, "waiting": False, "recipe": recipe, **event}))
        for epoch, value in enumerate(curve, 1):
            report = {"trial": event["trial"], "step": epoch, "epoch": epoch, study.objective: value, "seconds": 1.0}
            end = {"reason": reason if epoch == len(curve) else None, "message": ""}
            history.apply(Event({"kind": "epoch", "t": 1.0, "answer": "go", "acts": [], **report, **end}))
    return history


def asked(study: Study, curves: np.ndarray, points: np.ndarray) -> list[int]:
    """Epochs that each trial trains when the real scheduler is asked, one trial after another."""
    board, calls, trained = Board(study), 0, []
    for index, (curve, point) in enumerate(zip(curves, points.tolist(), strict=True)):
        trial = f"{index:05d}"
        board.add(trial, dict(zip(study.space.domains, point, strict=True)), calls)
        for epoch, value in enumerate(curve.tolist(), 1):
            calls += 1
            if not np.isfinite(value):
                board.finish(trial, None, calls)
                break
            event = {"step": epoch, "epoch": epoch, study.objective: value}
            if board.report(trial, event, calls).answer == "stop":
                break
        trained.append(epoch)
    return trained


@pytest.mark.parametrize("reduction", [1.3, 2.0, 3.0, 3.7])
@pytest.mark.parametrize(
    "fair", [{}, {"grace_by_strength": 4.0}, {"strata": 3}, {"grace_by_strength": 2.0, "strata": 2}]
)
@pytest.mark.parametrize(("grace", "max_epochs"), [(1, 27), (2, 13)])
def test_replay_stops_the_trials_that_the_scheduler_stops(
    reduction: float, fair: dict[str, Any], grace: int, max_epochs: int
) -> None:
    rules = ASHA(grace_epochs=grace, reduction_factor=reduction, **fair)
    study, rng = study_of(rules, max_epochs), np.random.default_rng(0)
    points = rng.random((40, 2))
    curves = np.round(np.cumsum(rng.normal(0.01, 0.02, (40, max_epochs)), axis=1), 2)  # rounded, so that ties occur
    curves[5, 3:] = curves[17, 0:] = np.nan
    trained = asked(study, curves, points)
    assert len(set(trained)) > 3
    spent = [simulate(curves, points.mean(1), rules, 10**9, np.arange(n + 1)).epochs_used for n in range(40)]
    assert np.diff([0, *spent]).tolist() == trained


def test_budget_cuts_the_trial_that_reaches_it() -> None:
    """What counts is the final score of the trial that looks best so far, although ASHA stops the second at epoch 3."""
    curves = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.1, 0.9], [0.6, 0.6, 0.6, 0.6]])
    rules = ASHA(grace_epochs=1, reduction_factor=3)
    for budget, found, used in ((0, np.nan, 0), (4, 0.4, 4), (5, 0.9, 5), (7, 0.9, 7), (8, 0.6, 8), (99, 0.6, 11)):
        result = simulate(curves, np.zeros(3), rules, budget, np.arange(3))
        np.testing.assert_equal((result.best_final_score_found, result.epochs_used), (found, used))
    nothing = simulate(np.full((2, 4), np.nan), np.zeros(2), rules, 99, np.arange(2))
    assert np.isnan(nothing.best_final_score_found) and nothing.epochs_used == 2


def test_later_brackets_start_with_later_rungs() -> None:
    curves = np.tile(np.linspace(0, 1, 27), (200, 1)) - np.arange(200)[:, None] / 200  # each worse than all before
    used = {
        brackets: simulate(curves, np.zeros(200), ASHA(brackets=brackets), 10**9, np.arange(200), seed=1).epochs_used
        for brackets in (1, 2, 4)
    }
    assert 26 + 200 == used[1] < used[2] < used[4]
    again = simulate(curves, np.zeros(200), ASHA(brackets=4), 10**9, np.arange(200), seed=1)
    assert again.epochs_used == used[4]


@pytest.mark.parametrize(
    ("rules", "max_epochs", "expected"),
    [
        (ASHA(), 27, [1, 3, 9]),
        (ASHA(), 28, [1, 3, 9, 27]),
        (ASHA(grace_epochs=2, reduction_factor=2.5), 40, [2, 5, 13, 32]),
        (ASHA(grace_epochs=5), 5, []),
        (FIFO(), 27, []),
    ],
)
def test_rungs(rules: ASHA | FIFO, max_epochs: int, expected: list[int]) -> None:
    assert rungs(study_of(rules, max_epochs)) == expected


def test_strength_is_the_mean_of_both() -> None:
    assert strength(Recipe().replace({"augment.strength": 0.2, "regularize.strength": 0.6})) == pytest.approx(0.4)
    assert strength(Recipe().replace({"augment.strength": 0.2, "regularize.strength": None})) == pytest.approx(0.1)


def test_too_few_controls_are_not_measurable() -> None:
    study, rng = study_of(ASHA(), 9), np.random.default_rng(0)
    curves, points = rng.random((NEEDED, 9)), rng.random((NEEDED, 2))
    for history in (told(study, curves[1:], points[1:]), told(study, curves, points, "stopped_budget"), History()):
        report = would_have_stopped(study, history)
        assert (report.rungs, report.stopped, report.regret) == ((), None, None)
        assert "not measurable" in report.sentence() and str(report.controls) in report.sentence()
    assert would_have_stopped(study, told(study, curves, points)).stopped is not None


def test_curves_that_never_cross_cost_nothing() -> None:
    study, rng = study_of(ASHA(), 9), np.random.default_rng(0)
    curves = np.linspace(0.5, 0.6, 9) + np.linspace(0, 0.3, 20)[:, None]
    report = would_have_stopped(study, told(study, curves, rng.random((20, 2))))
    assert (report.controls, report.stopped, report.regret) == (20, 0.0, 0.0)
    assert [(r.epoch, r.passed) for r in report.rungs] == [(1, 1.0), (3, 1.0)]
    for rung in report.rungs:
        assert (rung.correlation, rung.low, rung.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("objective", ["val_accuracy", "val_loss"])
def test_a_slow_winner_is_stopped_and_the_fair_option_saves_it(objective: str) -> None:
    """The best trial is the worst at the first rung: it survives only where nobody came before it."""
    rng = np.random.default_rng(0)
    final = np.sort(rng.uniform(0.5, 0.8, 20))
    curves = np.linspace(0.4, 1, 27) * final[:, None]
    curves[-1] = [*np.full(8, 0.1), *np.linspace(0.5, 0.95, 19)]
    points = np.full((20, 2), 0.1)
    points[-1] = 1.0
    curves = curves if objective == "val_accuracy" else 1 - curves
    study = study_of(ASHA(), 27, objective=objective)
    report = would_have_stopped(study, told(study, curves, points))
    assert report.stopped == pytest.approx(0.95, abs=0.025)  # all but the orders that it comes first in
    assert report.regret == pytest.approx(report.stopped * (0.95 - final[-2]), rel=0.2)
    first, _, last = report.rungs
    assert first.passed == pytest.approx(1 - report.stopped) and last.passed <= first.passed
    expected = stats.spearmanr(curves[:, 0], curves.max(1) if study.better == "max" else curves.min(1)).statistic
    assert first.correlation == pytest.approx(expected)
    assert first.low is not None and first.high is not None and first.low < expected < first.high
    assert f"{report.stopped:.0%}" in report.sentence() and objective in report.sentence()
    fair = study_of(ASHA(grace_by_strength=26.0), 27, objective=objective)
    assert would_have_stopped(fair, told(fair, curves, points)).stopped == 0
    apart = study_of(ASHA(strata=2), 27, objective=objective)
    assert would_have_stopped(apart, told(apart, curves, points)).stopped == 0


def test_the_answer_is_the_same_every_time_and_ties_have_no_rank() -> None:
    study, rng = study_of(ASHA(brackets=2), 9), np.random.default_rng(3)
    curves, points = rng.random((NEEDED, 9)), rng.random((NEEDED, 2))
    curves[:, 0] = 0.5
    reports = [would_have_stopped(study, told(study, curves, points)) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].rungs[0].correlation is None and reports[0].rungs[1].correlation is not None
    assert "at epoch 3" in reports[0].sentence() and "at epoch 1." not in reports[0].sentence()
