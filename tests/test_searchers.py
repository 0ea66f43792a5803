"""Every searcher against one contract, on a toy objective; then what is special to each."""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc

from cvtune.errors import ConfigError
from cvtune.evidence import Seen, final_scores
from cvtune.history import History
from cvtune.recipe import Recipe
from cvtune.searchers import GP, TPE, Grid, Random, Sobol
from cvtune.space import Choice, IntUniform, LogUniform, PerChoice, Space, Uniform, When, space
from cvtune.study import Observation, Study, make
from cvtune.suggest import Learner, expected_improvement, suggester

SPACE = space(
    {
        "optim.momentum": Uniform(0, 0.95),
        "optim.name": Choice("sgd", "adamw"),
        "optim.lr": LogUniform(1e-4, 1e-1),
        "augment.strength": Uniform(0, 1),
        "optim.accumulate": IntUniform(1, 8),
    },
    {"optim.momentum": When("optim.name", "sgd")},
)
POINTS = ({"optim.lr": 0.01}, {"optim.momentum": 0.5}, {"optim.name": "adamw", "augment.strength": 0.25})
SEARCHERS = [Random(), Grid(), Sobol(), TPE(startup=5), GP(startup=5)]
each_searcher = pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda s: s.name)
learning = pytest.mark.parametrize("searcher", [TPE(startup=5), GP(startup=5)], ids=lambda s: s.name)


def a_study(searcher, seed: int = 0, **more: Any) -> Study:
    base = Recipe().replace({"optim.name": "sgd", "optim.momentum": 0.2, "max_epochs": 9, "seed": seed})
    return make({"space": SPACE, "searcher": searcher, "recipe": base, "objective": "val_accuracy", **more})


def toy(values: dict[str, Any]) -> float:
    """A score up to 0.9: best at lr 0.01, strength 0.7, accumulate 3, sgd with momentum 0.8."""
    momentum = 0.1 * (values["optim.momentum"] - 0.8) ** 2 if values["optim.name"] == "sgd" else 0.05
    away = (math.log10(values["optim.lr"]) + 2) ** 2 / 10 + (values["augment.strength"] - 0.7) ** 2
    return 0.9 - away - momentum - (values["optim.accumulate"] - 3) ** 2 / 200


class Play:
    """Plays a study to a suggester and keeps the events, as a journal would."""

    def __init__(self, study: Study) -> None:
        self.study, self.suggester, self.events = study, suggester(study), list[dict[str, Any]]()
        self.values: dict[str, dict[str, Any]] = {}
        self.searched = 0

    def note(self, **event: Any) -> None:
        event = json.loads(json.dumps(event))  # as it comes back from disk
        self.events.append(event)
        self.suggester.observe(event)

    def trial(self, role: str = "search", values: dict[str, Any] | None = None) -> str | None:
        """Propose one more trial; None if nothing is left."""
        number = sum(e["kind"] == "trial" and e["role"] == role for e in self.events)
        if role == "search" and values is None:
            given = self.study.points[number] if number < len(self.study.points) else {}
            values = self.suggester.suggest(number, given)
            if values is None:
                return None
        name = f"{len(self.values):05d}"
        self.values[name] = values or {}
        self.note(
            kind="trial", trial=name, index=len(self.values) - 1, number=number, role=role, values=self.values[name]
        )
        return name

    def report(self, trial: str, step: int, score: float | None, reason: str | None = None, **more: Any) -> None:
        self.note(
            kind="epoch",
            trial=trial,
            step=step,
            epoch=step,
            reason=reason,
            message="",
            **{"val_accuracy": score, "acts": [], **more},
        )

    def finish(self, trial: str, score: float, epochs: int = 3, reason: str = "completed") -> None:
        for step in range(1, epochs):
            self.report(trial, step, score * step / epochs)
        self.report(trial, epochs, score, reason)

    def run(self, trials: int) -> list[dict[str, Any]]:
        """Trials one after another, each to its end."""
        for _ in range(trials):
            name = self.trial()
            assert name is not None
            self.finish(name, toy(self.values[name]))
        return list(self.values.values())


def eventful(study: Study) -> Play:
    """A study with all kinds of endings, points, control and noise trials, and three trials that still run."""
    play = Play(study)
    noise, control = play.trial("noise"), play.trial("control", SPACE.sample(np.random.default_rng(5)))
    names = [play.trial() for _ in range(9)]
    assert noise and control and all(names)
    play.finish(noise, 0.5)
    play.finish(control, 0.4)
    for number, name in enumerate(names[:6]):
        play.finish(name, toy(play.values[name]), 1 + number % 3, "completed" if number < 2 else "stopped_scheduler")
    play.report(names[6], 1, None, "diverged")
    play.note(kind="end", trial=names[7], reason="oom_gpu", message="")
    play.report(names[8], 1, 0.3)
    running = [play.trial(), play.trial()]
    play.report(running[0], 1, 0.35, acts=[{"act": "stop", "trial": names[8], "why": "rung 1"}])
    return play


# --- the contract


@each_searcher
def test_points_lie_in_their_domains_and_honor_the_conditions(searcher) -> None:
    for values in Play(a_study(searcher)).run(12):
        assert SPACE.restrict(values) == values
        assert ("optim.momentum" in values) == (values["optim.name"] == "sgd")
        Recipe().replace(values)


@each_searcher
def test_each_case_of_a_domain_is_searched_over_its_own_range(searcher) -> None:
    lr = PerChoice("optim.name", {"sgd": LogUniform(1e-2, 0.5), "adamw": LogUniform(1e-4, 1e-3)})
    cases = space({"optim.lr": lr, "optim.name": Choice("sgd", "adamw", "adagrad"), "augment.strength": Uniform(0, 1)})
    best = {"sgd": 0.05, "adamw": 3e-4}
    play = Play(
        a_study(searcher, space=cases, points=({"optim.lr": 2e-4}, {"optim.name": "adagrad"}, {"optim.lr": 0.5}))
    )
    tried = []
    for _ in range(10):
        name = play.trial()
        values = play.values[name]
        assert cases.restrict(values) == values
        tried.append(values)
        away = abs(math.log(values["optim.lr"] / best[values["optim.name"]])) if "optim.lr" in values else 3
        play.finish(name, 0.9 - 0.1 * away)
    assert [values["optim.name"] for values in tried[:3]] == ["adamw", "adagrad", "sgd"]
    assert len({json.dumps(values, sort_keys=True) for values in tried}) == 10


@each_searcher
def test_points_to_try_first_are_kept_and_completed(searcher) -> None:
    tried = Play(a_study(searcher, points=POINTS)).run(4)
    for point, values in zip(POINTS, tried, strict=False):
        assert point.items() <= values.items()
        assert SPACE.restrict(values) == values
    assert tried[1]["optim.name"] == "sgd"  # or the given momentum would have been lost


@each_searcher
def test_a_learned_point_keeps_what_is_given(searcher) -> None:
    play = Play(a_study(searcher))
    play.run(7)
    given = {"optim.momentum": 0.5, "optim.accumulate": 8}
    values = play.suggester.suggest(7, given)
    assert given.items() <= values.items()
    assert SPACE.restrict(values) == values
    whole = {"optim.name": "adamw", "optim.lr": 0.003, "augment.strength": 0.1, "optim.accumulate": 2}
    assert play.suggester.suggest(8, whole) == whole


@each_searcher
def test_the_seed_decides(searcher) -> None:
    runs = [Play(a_study(searcher, seed)).run(8) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    own = searcher.model_copy(update={"seed": 1})
    # the recipe's own seed is not searched, so it plays no part any more
    assert Play(a_study(own, seed=0)).run(8) == runs[2]


@each_searcher
def test_several_pending_trials_get_different_points(searcher) -> None:
    play = Play(a_study(searcher))
    play.run(6)
    names = [play.trial() for _ in range(4)]
    assert len({json.dumps(play.values[name]) for name in names}) == 4


@each_searcher
@pytest.mark.parametrize("asked_again", [False, True])
def test_a_replay_suggests_what_the_live_process_would_have(searcher, asked_again: bool) -> None:
    study = a_study(searcher, points=POINTS, prior=[Observation(values=FULL, score=0.6, epochs=9, complete=True)])
    live = eventful(study)
    again = suggester(study)
    for event in live.events:
        if asked_again and event["kind"] == "trial" and event["role"] == "search":
            number = event["number"]
            given = POINTS[number] if number < len(POINTS) else {}
            assert again.suggest(number, given) == event["values"]
        again.observe(event)
    for number in (11, 12):
        assert live.suggester.suggest(number, {}) == again.suggest(number, {})


def test_a_suggestion_is_the_same_in_every_process() -> None:
    """Optuna goes through sets of names, whose order Python draws anew for each process."""
    code = "import json, test_searchers as t; play = t.eventful(t.a_study(t.TPE(startup=5)));"
    code += "print(json.dumps([play.suggester.suggest(n, {}) for n in (11, 12)]))"
    here = eventful(a_study(TPE(startup=5))).suggester
    expected = [here.suggest(number, {}) for number in (11, 12)]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert json.loads(done.stdout) == expected


@each_searcher
def test_asking_twice_for_one_trial_changes_nothing(searcher) -> None:
    live = eventful(a_study(searcher))
    first = live.suggester.suggest(11, {})
    assert live.suggester.suggest(11, {}) == first
    assert live.suggester.suggest(12, {}) != first


@each_searcher
def test_an_empty_space_has_one_point(searcher) -> None:
    play = Play(Study(searcher=searcher, objective="val_accuracy"))
    assert play.suggester.suggest(0, {}) == {}


@each_searcher
def test_a_study_with_this_searcher_survives_json(searcher) -> None:
    study = a_study(searcher)
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_only_learning_searchers_are_dear() -> None:
    assert [suggester(a_study(s)).cheap for s in SEARCHERS] == [True, True, True, False, False]


def test_random_search_loads_no_heavy_library() -> None:
    code = (
        "import sys, cvtune.suggest as s; from cvtune.study import Study; s.suggester(Study()).suggest(0, {});"
        "print([m for m in ('optuna', 'scipy', 'sklearn', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- grid


def test_a_grid_is_exhausted_exactly() -> None:
    play = Play(a_study(Grid(points=3)))
    while (name := play.trial()) is not None:
        play.finish(name, 0.5)
    seen = {json.dumps(v, sort_keys=True) for v in play.values.values()}
    assert len(seen) == len(play.values) == 3**3 * (3 + 1)  # lr, strength, accumulate; sgd with 3 momenta, adamw
    assert {v["optim.accumulate"] for v in play.values.values()} == {1, 4, 8}
    assert {v["augment.strength"] for v in play.values.values()} == {0, 0.5, 1}


def test_a_grid_tries_no_point_twice_and_skips_those_tried_first() -> None:
    narrow = space({"optim.name": Choice("sgd", "adamw", "adam"), "optim.accumulate": IntUniform(1, 2)})
    play = Play(a_study(Grid(points=5), space=narrow, points=[{"optim.name": "adam", "optim.accumulate": 2}, {}]))
    while play.trial() is not None:
        pass
    assert len(play.values) == len({json.dumps(v) for v in play.values.values()}) == 6


def test_a_grid_that_ends_early_has_seen_every_value() -> None:
    tried = Play(a_study(Grid(points=3))).run(30)
    for name in SPACE.domains:
        assert len({values[name] for values in tried if name in values}) == (2 if name == "optim.name" else 3)


def test_a_grid_is_a_pure_function_of_space_seed_and_index() -> None:
    grid, cells = Grid(points=2), Grid(points=2).cells(SPACE)
    points = [grid.suggest(SPACE, 4, i) for i in range(len(cells))]
    assert sorted(map(json.dumps, points)) == sorted(map(json.dumps, cells)) and points != cells
    assert grid.suggest(SPACE, 4, len(cells)) is None


def test_a_grid_that_is_too_large_is_refused() -> None:
    assert Grid(points=10).refusal(SPACE) is None
    assert "more than 100,000 points" in Grid(points=100).refusal(SPACE)
    with pytest.raises(ConfigError, match="more than 100,000 points"):
        a_study(Grid(points=100))


# --- Sobol


def test_sobol_fills_the_space_more_evenly_than_random() -> None:
    flat = Space(domains={n: SPACE.domains[n] for n in ("optim.lr", "augment.strength")})

    def discrepancy(searcher, seed: int) -> float:
        return float(qmc.discrepancy([flat.encode(searcher.suggest(flat, seed, i)) for i in range(32)]))

    for seed in range(3):
        assert discrepancy(Sobol(), seed) < 0.5 * discrepancy(Random(), seed)


def test_sobol_points_are_one_sequence() -> None:
    rows = Sobol().quantiles(3, 7, 0, 16)
    assert [Sobol().quantiles(3, 7, i, 1)[0] for i in range(16)] == rows
    assert Sobol().quantiles(3, 8, 0, 16) != rows
    assert all(0 <= u < 1 for row in rows for u in row)


def test_sobol_refuses_more_axes_than_it_has() -> None:
    assert Sobol().refusal(SPACE) is None
    wide = Space.model_construct(domains=dict.fromkeys(range(21_202)))
    assert "21,201 axes" in Sobol().refusal(wide)


# --- what learns


FULL = {"optim.name": "adamw", "optim.lr": 0.003, "augment.strength": 0.1, "optim.accumulate": 2}


def told(play: Play) -> list[Any]:
    assert isinstance(play.suggester, Learner)
    return play.suggester.model(99).trials


def test_tpe_is_told_how_each_trial_ended() -> None:
    play = Play(a_study(TPE(), limits={"parameters": 100.0}, noise_seeds=0))
    names = [play.trial("search", {**FULL, "augment.strength": i / 10}) for i in range(9)]
    play.finish(names[0], 0.6)
    for step, score in enumerate((0.2, 0.5, 0.4), 1):
        play.report(names[1], step, score, "stopped_scheduler" if step == 3 else None)
    play.report(names[2], 1, 0.3)
    play.report(names[2], 2, None, "diverged")
    play.report(names[3], 1, 0.9, "stopped_budget", parameters=1000)
    play.note(kind="end", trial=names[4], reason="infra_lost", message="")
    for step, score in enumerate((0.7, 0.8, 0.75), 1):
        play.report(names[5], step, score, "stopped_patience" if step == 3 else None)
    play.report(names[6], 1, 0.1)
    play.report(names[7], 1, 0.2, acts=[{"act": "stop", "trial": names[6], "why": "rung 1"}])
    trials = told(play)
    assert [t.state.name for t in trials] == (
        ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "FAIL", "COMPLETE", "PRUNED", "RUNNING", "RUNNING"]
    )
    assert trials[0].value == 0.6 and trials[5].value == 0.8
    assert trials[1].intermediate_values == {1: 0.2, 2: 0.5, 3: 0.4} and trials[6].intermediate_values == {1: 0.1}
    assert trials[2].intermediate_values == trials[3].intermediate_values == {}
    assert trials[1].params == {**FULL, "optim.name": 1, "augment.strength": 0.1}


def test_noise_and_control_trials_count_where_they_lie_in_the_space_and_confirming_ones_do_not() -> None:
    play = Play(a_study(TPE()))
    for role in ("noise", "control", "confirm"):
        name = play.trial(role, FULL if role == "control" else None)
        play.finish(name, 0.5)
    noise, control = told(play)
    assert noise.params == {  # the base recipe
        "optim.name": 0,
        "optim.momentum": 0.2,
        "optim.lr": Recipe().optim.lr,
        "augment.strength": 0.3,
        "optim.accumulate": 1,
    }
    assert control.params["augment.strength"] == 0.1
    elsewhere = space({"augment.strength": Uniform(0.5, 1)})
    play = Play(a_study(TPE(), space=elsewhere))
    play.trial("noise")
    assert told(play) == []


def test_prior_observations_come_first() -> None:
    prior = [
        Observation(values=FULL, score=0.6, epochs=9, complete=True),
        Observation(values={**FULL, "augment.strength": 0.9}, score=0.4, epochs=3, complete=False),
    ]
    play = Play(a_study(TPE(), prior=prior))
    play.trial()
    first, second, running = told(play)
    assert (first.state.name, first.value, first.intermediate_values) == ("COMPLETE", 0.6, {})
    assert (second.state.name, second.intermediate_values) == ("PRUNED", {3: 0.4})
    assert running.state.name == "RUNNING"


def test_what_a_trial_reports_with_another_ones_weights_is_not_counted() -> None:
    play = Play(a_study(TPE()))
    name, donor = play.trial("search", FULL), play.trial("search", {**FULL, "augment.strength": 0.9})
    exploit = {"act": "exploit", "trial": name, "donor": donor, "donor_step": 1, "values": {}, "why": ""}
    play.report(name, 1, 0.3)
    play.report(donor, 1, 0.6, acts=[exploit])
    play.report(name, 2, 0.65, "completed")
    assert told(play)[0].state.name == "PRUNED" and told(play)[0].intermediate_values == {1: 0.3}


@learning
def test_a_trial_is_counted_once(searcher) -> None:
    play = Play(a_study(searcher))
    play.run(6)
    play.suggester.suggest(6, {})
    assert len(told(play)) == 7  # the point just proposed is pending
    play.suggester.suggest(6, {})
    play.trial()
    assert len(told(play)) == 7


@learning
def test_starts_at_random_and_not_with_the_points_of_the_controls(searcher) -> None:
    play = Play(a_study(searcher))
    tried = play.run(5)
    better = Play(a_study(searcher))
    for _ in range(5):
        better.finish(better.trial(), 0.5)
    assert list(better.values.values()) == tried  # the scores played no part
    assert play.suggester.suggest(5, {}) != better.suggester.suggest(5, {})
    assert not [v for i, v in enumerate(tried) if v == Random().suggest(SPACE, 0, i)]


def regret(searcher, seed: int, trials: int) -> float:
    return 0.9 - max(map(toy, Play(a_study(searcher, seed)).run(trials)))


def test_tpe_beats_random() -> None:
    random, tpe = ([regret(s, seed, 40) for seed in range(7)] for s in (Random(), TPE()))
    assert statistics.median(tpe) < 0.5 * statistics.median(random)


@pytest.mark.slow
def test_the_gaussian_process_beats_random() -> None:
    random, gp = ([regret(s, seed, 18) for seed in range(5)] for s in (Random(), GP(startup=8)))
    assert statistics.median(gp) < 0.5 * statistics.median(random)


@pytest.mark.parametrize(("searcher", "seeds"), [(TPE(startup=5), 4), (GP(startup=5), 1)])
def test_learns_where_trials_diverge(searcher, seeds: int) -> None:
    wide = space({"optim.lr": LogUniform(1e-4, 1), "augment.strength": Uniform(0, 1)})
    late = []
    for seed in range(seeds):
        play = Play(a_study(searcher, seed, space=wide))
        for _ in range(30):
            name = play.trial()
            if play.values[name]["optim.lr"] > 1e-3:  # three quarters of the axis
                play.report(name, 1, None, "diverged")
            else:
                play.finish(name, 0.5 + 0.1 * play.values[name]["augment.strength"])
        late += [values["optim.lr"] > 1e-3 for values in list(play.values.values())[-15:]]
    assert sum(late) < 0.55 * len(late)


@learning
def test_learns_from_stopped_trials_alone(searcher) -> None:
    play = Play(a_study(searcher))
    for _ in range(24):
        name = play.trial()
        play.finish(name, toy(play.values[name]), epochs=1, reason="stopped_scheduler")
    scores = [toy(values) for values in play.values.values()]
    assert statistics.median(scores[-10:]) > statistics.median(scores[:5])


@learning
def test_a_lower_score_is_better_where_the_objective_says_so(searcher) -> None:
    play = Play(a_study(searcher, objective="val_loss"))
    for _ in range(20):
        name = play.trial()
        play.report(name, 1, 0.0, "completed", val_loss=1 - toy(play.values[name]))
    scores = [toy(values) for values in play.values.values()]
    assert statistics.median(scores[-8:]) > statistics.median(scores[:5])


def test_the_gaussian_process_is_told_whole_points_and_final_scores() -> None:
    play = Play(a_study(GP()))
    for values, epochs, reason in (({}, 3, "completed"), ({"optim.lr": 0.05}, 2, "stopped_scheduler")):
        play.finish(play.trial("search", FULL | values), 0.6 * epochs / 3, epochs, reason)
    play.note(kind="end", trial=play.trial("search", FULL), reason="code_error", message="")
    play.report(play.trial("search", FULL), 1, None, "diverged")
    trials = told(play)
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3
    assert [t.value for t in trials] == pytest.approx([0.6, 0.6, 0.6])  # 0.4 and the 0.2 that the first one gained
    assert all(t.params["optim.momentum"] == pytest.approx(0.475) for t in trials)


# --- final scores


def curve(outcome, *scores: float, start: int = 1) -> Seen:
    return Seen({}, outcome, dict(enumerate(scores, start)))


def test_a_stopped_trial_gets_the_median_of_what_others_gained_later() -> None:
    seen = [
        curve("complete", 0.3, 0.5, 0.6),
        curve("complete", 0.2, 0.5, 0.9),
        curve("running", 0.2, 0.3),
        curve("stopped", 0.1),
        curve("stopped", 0.1, 0.25),
    ]
    # epoch 2 brought 0.2, 0.3, 0.1 and 0.15, epoch 3 0.1 and 0.4
    assert final_scores(seen, 1) == pytest.approx([0.6, 0.9, None, 0.1 + 0.175 + 0.25, 0.25 + 0.25], nan_ok=True)


def test_no_estimate_is_better_than_the_best_measurement() -> None:
    seen = [curve("complete", 0.1, 0.6), curve("stopped", 0.5)]
    assert final_scores(seen, 1) == [0.6, 0.6]


def test_a_drop_after_the_best_epoch_costs_nothing_and_bad_points_get_the_worst_score() -> None:
    seen = [curve("complete", 0.5, 0.4, 0.6), curve("stopped", 0.2), curve("bad", 0.9), curve("failed", 0.9)]
    assert final_scores(seen, 1) == pytest.approx([0.6, 0.2 + 0.1, 0.3, None])
    assert final_scores([curve("bad")], 1) == [None]


def test_for_losses_everything_is_mirrored() -> None:
    seen = [curve("complete", 0.9, 0.4), curve("stopped", 1.0), curve("bad")]
    assert final_scores(seen, -1) == pytest.approx([0.4, 0.5, 0.5])


def test_an_early_observation_of_an_older_study_gains_only_what_came_after_it() -> None:
    seen = [curve("complete", 0.1, 0.2, 0.3), curve("stopped", 0.15, start=2)]
    assert final_scores(seen, 1)[1] == pytest.approx(0.25)


# --- expected improvement


def played(study: Study, values: list[dict[str, Any]], scores: list[float], reason: str = "completed") -> History:
    history = History()
    for index, (point, score) in enumerate(zip(values, scores, strict=True)):
        name, recipe = str(index), study.trial(index, point).model_dump(mode="json")
        common = {"trial": name, "index": index, "role": "search", "label": "", "values": point, "waiting": False}
        history.apply({"kind": "trial", "recipe": recipe, "t": 0.0, **common})
        epoch = {"kind": "epoch", "trial": name, "step": 1, "epoch": 1, "answer": "go", "seconds": 1.0, "t": 0.0}
        history.apply({**epoch, study.objective: score, "reason": reason, "message": "", "acts": []})
    return history


STRENGTH = space({"augment.strength": Uniform(0, 1)})


def test_little_is_expected_where_everything_was_tried() -> None:
    study = a_study(Random(), space=STRENGTH)
    dense = [{"augment.strength": u} for u in np.linspace(0, 1, 20).tolist()]
    half = [{"augment.strength": u} for u in np.linspace(0, 0.5, 20).tolist()]

    def score(values: dict[str, Any]) -> float:
        return 0.9 - (values["augment.strength"] - 0.7) ** 2

    known = expected_improvement(study, played(study, dense, [score(v) for v in dense]), 0)
    unknown = expected_improvement(study, played(study, half, [score(v) for v in half]), 0)
    assert 0 <= known < 1e-3
    assert unknown > 10 * known  # the best known score is 0.04 below what lies beyond
    assert expected_improvement(study, played(study, half, [score(v) for v in half]), 0) == unknown


def test_the_noise_of_single_trials_is_no_improvement() -> None:
    study = a_study(Random(), space=STRENGTH)
    rng = np.random.default_rng(0)
    points = [{"augment.strength": u} for u in rng.random(40).tolist()]
    history = played(study, points, (0.5 + 0.1 * rng.normal(size=40)).tolist())
    assert expected_improvement(study, history, 0) < 0.02  # a single trial's own luck would promise 0.04 = 0.4 sd


def test_losses_improve_downward() -> None:
    study = a_study(Random(), space=STRENGTH, objective="val_loss")
    half = [{"augment.strength": u} for u in np.linspace(0, 0.5, 12).tolist()]
    falling = expected_improvement(study, played(study, half, [1 - v["augment.strength"] for v in half]), 0)
    rising = expected_improvement(study, played(study, half, [v["augment.strength"] for v in half]), 0)
    assert falling > 0.1 and falling > 5 * rising


def test_nothing_is_expected_of_too_few_or_of_stopped_trials() -> None:
    study = a_study(Random(), space=STRENGTH)
    points = [{"augment.strength": u} for u in np.linspace(0, 1, 12).tolist()]
    assert math.isnan(expected_improvement(study, played(study, points[:7], [0.1] * 7), 0))
    assert math.isnan(expected_improvement(study, played(study, points, [0.1] * 12, "stopped_scheduler"), 0))
    assert math.isfinite(expected_improvement(study, played(study, points, [0.1] * 12), 0))
