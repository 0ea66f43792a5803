"""Plans: a study played on paper trains what the real one would; budgets that cannot be met; planned against real."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cvtune import plan, study
from cvtune.errors import ConfigError
from cvtune.event import Event
from cvtune.forecast import Cost, broken, fitting_trials, forecast
from cvtune.history import History

COST = Cost(epoch=2.0, between=0.5, trial=1.0, process=10.0, checkpoint=1000, report=10)
BASE = study.for_data("digits").set(
    {"objective": "val_accuracy", "max_epochs": 9, "budget.trials": 12, "noise_seeds": 2, "confirm.top": 0}
)


def with_(**settings: Any) -> study.Study:
    return BASE.set({name.replace("__", "."): value for name, value in settings.items()})


def test_without_early_stopping_everything_is_added_up() -> None:
    found = forecast(with_(scheduler__name="fifo"), COST, 1)
    assert (found.trials, found.epochs, found.full, found.counted) == (14, 126, 126, 126)
    assert found.device_s == 126 * 2.0
    assert found.wall_s == pytest.approx(10 + 13 * 1 + 126 * 2 + 14 * 8 * 0.5)
    assert found.bytes == 5 * 1000 + 126 * 10


@pytest.mark.parametrize("name", ["asha", "promotion", "median", "hyperband", "pbt"])
def test_every_scheduler_can_be_played(name: str) -> None:
    found = forecast(with_(scheduler__name=name), COST, 2)
    assert found.trials == 14
    assert found.epochs == found.full if name == "pbt" else 14 < found.epochs < found.full


def test_over_folds_epochs_are_those_of_all_folds_and_trials_are_stopped_after_whole_ones() -> None:
    found = forecast(with_(scheduler__name="fifo", data__folds=3), COST, 1)
    assert (found.trials, found.epochs, found.full) == (14, 14 * 27, 14 * 27)
    assert found.wall_s == pytest.approx(10 + 13 * 1 + 14 * (27 * 2 + 26 * 0.5 + 2 * 1))
    stopped = forecast(with_(data__folds=3), COST, 2)
    assert 14 * 9 < stopped.epochs < stopped.full and stopped.epochs % 9 == 0
    assert plan._short(with_(data__folds=3)).recipe.total_epochs == 6


def test_more_trials_at_once_take_less_time_and_the_confirmation_comes_on_top() -> None:
    alone, four = (forecast(BASE, COST, slots) for slots in (1, 4))
    assert four.wall_s < 0.5 * alone.wall_s
    confirmed = forecast(with_(confirm__top=1, confirm__seeds=2), COST, 1)
    assert confirmed.epochs > confirmed.counted and confirmed.search_s < confirmed.wall_s


def test_a_budget_that_ends_the_search_early_is_refused_with_what_fits() -> None:
    asked = with_(scheduler__name="fifo", budget__epochs=60)
    made = plan.Plan(COST, forecast(asked, COST, 1), 1, {"CPU": 2.0}, {})
    assert broken(asked, made.forecast, 2.0) == {"epochs": (60, 126.0)}
    assert fitting_trials(asked, COST, 1, 2.0) == 4  # and two noise trials, of 9 epochs each
    with pytest.raises(ConfigError, match=r"budget.epochs = 60, and the search needs 126.* --set budget.trials=4 fits"):
        plan.check_budget(asked, made)
    hours = with_(scheduler__name="fifo", budget__gpu_hours=0.001)
    with pytest.raises(ConfigError, match=r"budget.gpu_hours = 0.001.*not a single trial fits: lower max_epochs"):
        plan.check_budget(hours, made)
    plan.check_budget(with_(budget__time_s=10000), made)


def test_the_short_trials_are_a_study_of_any_kind() -> None:
    short = plan._short(with_(scheduler__name="pbt", confirm__top=2, optim__warmup_epochs=2))
    assert (short.recipe.max_epochs, short.scheduler.name, short.budget.trials, short.most_confirmed) == (
        3,
        "fifo",
        4,
        0,
    )
    assert short.space == BASE.space and short.tracking.mode == "off"


@pytest.mark.parametrize(("most", "asked", "slots"), [(None, None, 3), (2, None, 2), (8, None, 3), (None, 5, 5)])
def test_as_many_trials_at_once_are_planned_as_the_nodes_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None, asked: int | None, slots: int
) -> None:
    """Three nodes of 3 cores hold three trials of 2, not the four that 9 cores would."""
    history = History()
    cluster: dict[str, Any] = {"resources": {"CPU": 2.0}, "cluster": {"CPU": 9.0}, "fits": 3}
    history.apply(Event({"kind": "open", "t": 100.0, **cluster}))
    proposed = {"trial": "0", "index": 0, "role": "search", "label": "", "values": {}, "recipe": {}, "waiting": False}
    history.apply(Event({"kind": "trial", "t": 100.0, **proposed}))
    report = {"seconds": 4.0, "answer": "stop", "reason": "completed", "message": ""}
    history.apply(Event({"kind": "epoch", "t": 110.0, "trial": "0", "step": 1, "epoch": 1, **report}))
    done = SimpleNamespace(signal=None, study=BASE, history=history, folder=tmp_path)
    monkeypatch.setattr(plan, "run_study", lambda *_: done)
    made = plan.plan(with_(resources__cpu=2, resources__max_concurrent=most), tmp_path, None, (), asked)
    assert made.slots == slots


def test_what_was_planned_is_compared_with_what_it_took(tmp_path: Path) -> None:
    history = History()
    history.apply(Event({"kind": "open", "t": 100.0}))
    proposed = {"trial": "0", "index": 0, "role": "search", "label": "", "values": {}, "recipe": {}, "waiting": False}
    history.apply(Event({"kind": "trial", "t": 100.0, **proposed}))
    for step in (1, 2):
        metrics = {"seconds": 4.0, "answer": "go", "reason": None}
        history.apply(Event({"kind": "epoch", "t": 110.0, "trial": "0", "step": step, "epoch": step, **metrics}))
    history.apply(Event({"kind": "close", "t": 120.0, "why": "complete", "ended": None}))
    assert plan.compared(BASE, tmp_path, history) is None
    told = {"epochs": 2, "device_s": 10.0, "wall_s": 10.0}
    about = {"resources": {"CPU": 1.0}, "forecast": told, "definition": plan._about(BASE)}
    (tmp_path / plan.FILE).write_text(json.dumps({"format": 1, **about}))
    said = plan.compared(BASE, tmp_path, history)
    assert said is not None and "took 2 (+0%)" in said and "(-20%)" in said and "20 s (+100%). The plan was off" in said
    assert json.loads((tmp_path / plan.FILE).read_text())["real"]["wall_s"] == 20.0
    assert plan.compared(with_(max_epochs=3), tmp_path, history) is None  # planned was another study
