"""One contract for all six schedulers: driven as the engine drives them, on a toy objective that trains nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import pb2 as ray_pb2

from cvtune.board import Board, Verdict
from cvtune.errors import ConfigError
from cvtune.population import mutate
from cvtune.recipe import Recipe
from cvtune.schedulers import ASHA, FIFO, PB2, PBT, HyperBand, Median, Promotion
from cvtune.sections import Budget
from cvtune.space import Choice, IntUniform, LogUniform, PerChoice, Space, Uniform, When, space
from cvtune.study import Study

SPACE = space(
    {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1)}
)
SCHEDULERS = {
    "fifo": FIFO(),
    "asha": ASHA(),
    "asha fair": ASHA(grace_by_strength=2.0, strata=2, brackets=2),
    "promotion": Promotion(),
    "hyperband": HyperBand(),
    "median": Median(),
    "pbt": PBT(synch=False),
    "pbt sync": PBT(synch=True, interval_epochs=2, burn_in_epochs=3),
    "pb2": PB2(synch=False, interval_epochs=2),
    "pb2 sync": PB2(synch=True, interval_epochs=3),
}
POPULATIONS = ("pbt", "pbt sync", "pb2", "pb2 sync")
each = pytest.mark.parametrize("name", SCHEDULERS)
each_slots = pytest.mark.parametrize("slots", [1, 2, 3])


def study_of(name: str, trials: int | None = None, max_epochs: int = 9, **more: Any) -> Study:
    trials = trials or (6 if name in POPULATIONS else 24)
    recipe = Recipe().replace({"max_epochs": max_epochs})
    return Study(
        recipe=recipe,
        space=SPACE,
        scheduler=SCHEDULERS[name],
        budget=Budget(trials=trials),
        **{"noise_seeds": 0, "objective": "val_accuracy", **more},
    )


def gain(values: dict[str, Any]) -> float:
    """Progress per epoch: most at augment.strength = 0.6, regularize.strength = 0.4, optim.lr = 0.01."""
    off = (values["augment.strength"] - 0.6) ** 2 + (values["regularize.strength"] - 0.4) ** 2
    return 0.02 + math.exp(-6 * off - math.log10(values["optim.lr"] / 0.01) ** 2)


def rising(progress: float, epoch: int, number: int) -> float:
    return 1 - math.exp(-progress / 4)


@dataclass
class Toy:
    """A trial as the engine knows it."""

    values: dict[str, Any]
    progress: float = 0.0
    step: int = 0
    epoch: int = 0
    waiting: bool = False
    reason: str | None = None
    loads: tuple[str, int] | None = None  # the checkpoint of another trial that it starts from
    scores: list[float] = field(default_factory=list)


@dataclass
class Engine:
    """Drives a Board with a number of places for trials, and checks at each step what must always hold.

    Attributes:
        score: the objective of a trial's weights: (progress, epoch, trial's number) -> score.
        fails, ends: probability per epoch that a trial fails, or ends by a rule of its own.
        log: every event put to the board, with what it answered.
    """

    study: Study
    slots: int
    fails: float = 0.0
    ends: float = 0.0
    score: Any = rising
    most_steps: int = 10_000

    def __post_init__(self) -> None:
        self.board = Board(self.study)
        self.trials: dict[str, Toy] = {}
        self.running: list[str] = []
        self.saved: dict[tuple[str, int], tuple[float, int]] = {}
        self.log: list[tuple[str, tuple[Any, ...], Any]] = []
        self.acts: list[dict[str, Any]] = []
        self.verdicts: list[tuple[str, int, Verdict]] = []
        self.calls = self.steps = 0
        self.rng = random.Random(3)

    def run(self) -> Engine:
        while self.steps < self.most_steps:
            self.fill()
            if not self.running:
                break
            self.epoch(self.rng.choice(self.running))
        waiting = [name for name, toy in self.trials.items() if toy.reason is None]
        if (
            isinstance(self.study.scheduler, Promotion) and not self.running
        ):  # the ledger drops them; see `give_up_waiting`
            for name in waiting:
                assert self.trials[name].waiting and "go on" in self.board.waits(name)
                self.over(name, "stopped")
                assert self.put("finish", name, None, self.next_call()) == ()
            return self
        assert not waiting, f"never ended: {waiting} after {self.steps} steps"
        return self

    def fill(self) -> None:
        """Propose and start, as `phases.Phases` and `tune.Referee` do."""
        while len(self.running) < self.slots:
            board, left = self.board, len(self.trials) < self.study.budget.trials
            chosen = board.choose(self.calls) if board.pausing else None
            assert chosen == board.choose(self.calls), "choose is no pure question"
            if left and (board.wants_more() or chosen is None):
                self.propose()
            elif chosen is not None:
                assert self.trials[chosen].waiting and self.trials[chosen].reason is None
                self.put("start", chosen)
                self.load(self.trials[chosen])
                self.running.append(chosen)
            else:
                break

    def load(self, toy: Toy) -> None:
        toy.waiting = False
        if toy.loads is not None:
            (toy.progress, toy.epoch), toy.loads = self.saved[toy.loads], None  # KeyError: it was deleted too early

    def propose(self) -> None:
        index = len(self.trials)
        name = f"{index:05d}"
        values = self.study.space.sample(np.random.default_rng([7, index]))
        self.put("add", name, values, self.next_call())
        self.trials[name] = Toy(values, waiting=self.board.pausing)
        if not self.board.pausing:
            self.running.append(name)

    def epoch(self, name: str) -> None:
        """One epoch of one trial, and its report."""
        toy, max_epochs = self.trials[name], self.study.recipe.max_epochs
        assert toy.epoch < max_epochs, "asked to train beyond max_epochs"
        toy.progress, toy.step, toy.epoch = toy.progress + gain(toy.values), toy.step + 1, toy.epoch + 1
        self.steps += 1
        if self.rng.random() < self.fails:
            self.over(name, "failed")
            self.act(self.put("finish", name, None, self.next_call()))
            return
        self.saved[name, toy.step] = (toy.progress, toy.epoch)
        toy.scores.append(self.score(toy.progress, toy.epoch, int(name)))
        report = {"step": toy.step, "epoch": toy.epoch, "val_accuracy": toy.scores[-1], "val_loss": -toy.scores[-1]}
        verdict = self.put("report", name, report, call := self.next_call())
        self.verdicts.append((name, toy.epoch, verdict))
        self.act(verdict.acts)
        own_end = self.rng.random() < self.ends
        if toy.epoch >= max_epochs:
            self.over(name, "completed")
        elif verdict.answer == "stop":
            self.over(name, "stopped")
        elif own_end:
            self.over(name, "patience")
        elif verdict.answer == "pause":
            toy.waiting = True
            self.running.remove(name)
        if toy.reason is not None:
            self.act(self.put("finish", name, report, call))
        needed = self.board.needed()
        assert {(n, t.step) for n, t in self.trials.items() if t.reason is None and t.step} <= needed
        self.saved = {place: self.saved[place] for place in needed}  # KeyError: what is gone is asked for

    def act(self, acts: tuple[dict[str, Any], ...]) -> None:
        for act in acts:
            self.acts.append(act)
            toy = self.trials[act["trial"]]
            assert toy.reason is None
            if act["act"] == "stop":
                assert toy.waiting, "ends a trial that runs"
                self.over(act["trial"], "stopped")
                continue
            assert act["act"] == "exploit" and self.trials[act["donor"]].reason is None
            assert act["values"].keys() == self.study.space.domains.keys()
            toy.values, toy.waiting, toy.loads = act["values"], True, (act["donor"], act["donor_step"])

    def over(self, name: str, reason: str) -> None:
        assert self.trials[name].reason is None, "ends twice"
        self.trials[name].reason = reason
        if name in self.running:
            self.running.remove(name)

    def next_call(self) -> int:
        self.calls += 1
        return self.calls - 1

    def put(self, what: str, *args: Any) -> Any:
        random.random(), np.random.random(self.steps % 5)  # what else a driver may do with the global generators
        answer = getattr(self.board, what)(*args)
        self.log.append((what, args, answer))
        return answer

    @property
    def best(self) -> float:
        return max(max(toy.scores, default=0) for toy in self.trials.values())


@pytest.fixture
def quick_pb2(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about what PB2 chooses: any point instead of half a second of Gaussian processes."""

    def anything(x: np.ndarray, y: Any, current: Any, newpoint: Any, bounds: dict[str, Any], num_f: int) -> np.ndarray:
        return np.array([np.random.uniform(low, high) for low, high in bounds.values()], np.float32)

    monkeypatch.setattr(ray_pb2, "_select_config", anything)


@each
@each_slots
@pytest.mark.usefixtures("quick_pb2")
def test_every_trial_ends_once_within_the_budget(name: str, slots: int) -> None:
    engine = Engine(study_of(name), slots).run()
    assert len(engine.trials) == engine.study.budget.trials
    completed = [toy for toy in engine.trials.values() if toy.reason == "completed"]
    assert completed and all(toy.epoch == 9 for toy in completed)
    assert {toy.reason for toy in engine.trials.values()} <= {"completed", "stopped"}
    if name not in POPULATIONS:
        assert all(toy.step == toy.epoch for toy in engine.trials.values())


@each
@each_slots
def test_keeps_the_best_and_not_the_worst(name: str, slots: int) -> None:
    engine = Engine(study_of(name), slots).run()
    blind = Engine(study_of("fifo", trials=engine.study.budget.trials), slots).run()
    quality = sorted(blind.trials, key=lambda trial: gain(blind.trials[trial].values))
    best, worst = engine.trials[quality[-1]], engine.trials[quality[0]]
    assert best.reason == "completed"
    if name == "fifo":
        assert worst.reason == "completed" and engine.best == blind.best
    elif name in POPULATIONS:
        assert any(act["trial"] == quality[0] for act in engine.acts), "the worst was never replaced"
        mean = [np.mean([toy.scores[-1] for toy in e.trials.values()]) for e in (engine, blind)]
        assert mean[0] > mean[1]
    else:
        stopped = [trial for trial in quality if engine.trials[trial].reason == "stopped"]
        assert len(stopped) >= 5 and engine.steps < 0.8 * blind.steps
        assert np.mean([quality.index(trial) for trial in stopped]) < 11.5 - 1.5  # of 24: more bad ones than good ones
        assert engine.best > 0.97 * blind.best


@each
@each_slots
@pytest.mark.parametrize("trouble", [{"fails": 0.15}, {"ends": 0.15}, {"fails": 0.3, "ends": 0.1}])
@pytest.mark.usefixtures("quick_pb2")
def test_nobody_starves_when_trials_fail_or_end_on_their_own(name: str, slots: int, trouble: dict[str, float]) -> None:
    for seed in range(4):
        engine = Engine(study_of(name, trials=11), slots, **trouble)
        engine.rng = random.Random(seed)
        engine.run()  # it asserts that all have ended
        assert len(engine.trials) == 11


@each
def test_a_study_of_which_every_trial_fails_comes_to_its_end(name: str) -> None:
    engine = Engine(study_of(name, trials=11), 2, fails=1.0).run()
    assert {toy.reason for toy in engine.trials.values()} == {"failed"} and not engine.acts


@each
def test_every_decision_names_its_numbers(name: str) -> None:
    engine = Engine(study_of(name), 2).run()
    number = re.compile(r"\d+\.\d+")
    for trial, epoch, verdict in engine.verdicts:
        acted = any(act["trial"] == trial for act in verdict.acts)
        if verdict.action is not None:
            assert "val_accuracy = " in verdict.why and number.search(verdict.why), verdict
        if verdict.action == "stop":
            assert verdict.answer == "stop" and epoch < 9
        if verdict.answer == "stop":
            assert verdict.action == "stop" or (epoch == 9 and verdict.why == "max_epochs = 9")
        if verdict.action == "promote":
            assert verdict.answer == "go"
        if acted:
            assert verdict.answer == "pause"
    for act in engine.acts:
        assert act["why"].count("val_accuracy = ") == 1 and number.search(act["why"])
        if act["act"] == "exploit":
            assert f"takes over {act['donor']} with" in act["why"] and "quantile 0.25" in act["why"]
    told = {verdict.action for _, _, verdict in engine.verdicts} | {act["act"] for act in engine.acts}
    if name in POPULATIONS:
        assert told == {None, "exploit"}
    else:
        assert told == {"fifo": {None}, "median": {None, "stop"}, "promotion": {None, "promote"}}.get(
            name, {None, "stop", "promote"}
        )


@each
def test_values_stay_in_their_domains_and_are_plain(name: str) -> None:
    engine = Engine(study_of(name, trials=8), 3).run()
    assert json.loads(json.dumps(engine.acts)) == engine.acts
    for act in engine.acts:
        for searched, value in act.get("values", {}).items():
            assert type(value) is float and SPACE.domains[searched].contains(value)
    assert any(act["act"] == "exploit" for act in engine.acts) == (name in POPULATIONS)


def replay(study: Study, log: list[tuple[str, tuple[Any, ...], Any]]) -> Board:
    board = Board(study)
    for what, args, answer in log:
        again = getattr(board, what)(*json.loads(json.dumps(args)))
        assert again == answer, (what, args)
    return board


@each
@each_slots
def test_a_record_gives_the_same_answers_again(name: str, slots: int) -> None:
    engine = Engine(study_of(name), slots, fails=0.05, ends=0.03).run()
    replay(engine.study, engine.log)


@each
@pytest.mark.usefixtures("quick_pb2")
def test_a_board_taken_up_at_any_point_goes_on_as_if_nothing_had_happened(name: str) -> None:
    whole = Engine(study_of(name), 2, fails=0.05, ends=0.03).run()
    for at in random.Random(1).sample(range(whole.steps), 5):
        engine = Engine(study_of(name), 2, fails=0.05, ends=0.03)
        engine.most_steps = at
        with pytest.raises(AssertionError, match="never ended") if at else pytest.raises(AssertionError):
            engine.run()
        engine.board = replay(engine.study, engine.log)
        engine.most_steps = whole.most_steps
        engine.run()
        assert engine.log == whole.log and engine.trials == whole.trials


@each
@pytest.mark.usefixtures("quick_pb2")
def test_smaller_is_better_where_the_objective_says_so(name: str) -> None:
    up = Engine(study_of(name), 2).run()
    down = Engine(study_of(name, objective="val_loss"), 2).run()
    assert [toy.reason for toy in down.trials.values()] == [toy.reason for toy in up.trials.values()]
    assert [act["trial"] for act in down.acts] == [act["trial"] for act in up.acts]


@pytest.mark.parametrize("name", POPULATIONS)
@each_slots
@pytest.mark.usefixtures("quick_pb2")
def test_a_population_comes_to_its_end_when_scores_fall_with_age(name: str, slots: int) -> None:
    """A trial that falls back to a younger donor must not be asked before that donor again, or both stay young."""

    def peaks_at_3(progress: float, epoch: int, number: int) -> float:
        return 1 - abs(epoch - 3) / 10 + number / 1000

    engine = Engine(study_of(name, trials=5), slots, score=peaks_at_3, most_steps=5 * 9 * 4).run()
    assert any(toy.step > toy.epoch for toy in engine.trials.values()) == (name in ("pbt", "pb2"))


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.usefixtures("quick_pb2")
def test_a_population_trains_in_turns(name: str) -> None:
    """With fewer places than trials nobody runs ahead of the others by more than an interval."""
    engine = Engine(study_of(name, trials=7), 2)
    ahead = 0
    put = engine.put

    def watch(what: str, *args: Any) -> Any:
        nonlocal ahead
        ages = [toy.epoch for toy in engine.trials.values() if toy.reason is None]
        ahead = max(ahead, max(ages, default=0) - min(ages, default=0))
        return put(what, *args)

    engine.put = watch
    engine.run()
    assert 0 < ahead <= 2 * 3


# --- the moves of PBT


DOMAINS = [
    Uniform(0, 1),
    Uniform(-3, 0.1),
    LogUniform(1e-5, 3e-2),
    IntUniform(1, 7),
    IntUniform(0, 1000),
    Choice(0.0, 0.5, 0.1, 0.9),
    Choice(None, 1, True, "a"),
]


def walk(domain: Any, rules: PBT, n: int, start: Any) -> Iterator[tuple[Any, Any]]:
    value = start
    for _ in range(n):
        value, before = mutate(domain, value, rules), value
        yield before, value


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_moves_stay_in_the_domain(domain: Any) -> None:
    random.seed(0)
    kinds = {float} if isinstance(domain, Uniform | LogUniform) else {int} if isinstance(domain, IntUniform) else None
    for _, value in walk(domain, PBT(), 10_000, domain.at(0.3)):
        assert domain.contains(value)
        assert kinds is None or {type(value)} == kinds


def test_linear_axes_move_additively_so_that_zero_can_be_left() -> None:
    random.seed(0)
    moves = list(walk(Uniform(0, 1), PBT(resample=0, step=0.2), 2000, 0.0))
    left = [after for before, after in moves if before == 0]
    assert left and set(left) == {0.0, 0.2}
    inside = [(before, after) for before, after in moves if 0.2 <= before <= 0.8]
    assert all(abs(after - before) == pytest.approx(0.2) for before, after in inside)
    assert 0.4 < sum(after > before for before, after in inside) / len(inside) < 0.6


def test_logarithmic_axes_move_by_the_factor() -> None:
    random.seed(0)
    for before, after in walk(LogUniform(1e-4, 1), PBT(resample=0, factor=3), 2000, 1e-2):
        assert after in (pytest.approx(before * 3), pytest.approx(before / 3), 1e-4, 1.0)


def test_whole_numbers_move_by_at_least_one_and_choices_to_a_neighbor() -> None:
    random.seed(0)
    whole = [abs(a - b) for b, a in walk(IntUniform(1, 3), PBT(resample=0, step=0.01), 500, 2)]
    assert set(whole) == {0, 1}  # 0: at an end
    domain = Choice("a", "b", "c", "d")
    steps = [abs(domain.position(a) - domain.position(b)) for b, a in walk(domain, PBT(resample=0), 500, "a")]
    assert set(steps) == {1}


def test_resampling_covers_the_domain() -> None:
    random.seed(0)
    drawn = [mutate(Uniform(0, 1), 0.5, PBT(resample=1)) for _ in range(1000)]
    assert np.histogram(drawn, bins=10, range=(0, 1))[0].min() > 60


# --- refusals


def refused(scheduler: Any, **more: Any) -> str:
    given: dict[str, Any] = {"space": SPACE, "max_epochs": 9, "searcher": "random", "trials": 8} | more
    told = scheduler.refusal(given["space"], given["max_epochs"], given["searcher"], given["trials"])
    assert told is not None, "it was accepted"
    assert told.endswith(".") and told[0] != " " and ". " in told  # what is wrong, and what to do
    return str(told)


@each
def test_what_can_work_is_accepted(name: str) -> None:
    assert SCHEDULERS[name].refusal(SPACE, 9, "random", 24) is None


@each
def test_a_study_that_searches_nothing_is_accepted(name: str) -> None:
    assert SCHEDULERS[name].refusal(Space(), 1, "gp", 0) is None
    board = Board(Study(scheduler=SCHEDULERS[name], budget=Budget(trials=0)))
    assert not board.pausing and not board.wants_more() and board.choose(0) is None and board.needed() == set()


@pytest.mark.parametrize("searcher", ["tpe", "gp"])
@pytest.mark.parametrize("scheduler", [PBT(), PB2()])
def test_a_population_refuses_searchers_that_learn(scheduler: PBT | PB2, searcher: str) -> None:
    told = refused(scheduler, searcher=searcher)
    assert f"searcher.name = {searcher}" in told and "random, sobol or grid" in told


@pytest.mark.parametrize("scheduler", [PBT(), PB2()])
def test_a_population_refuses_what_it_cannot_change(scheduler: PBT | PB2) -> None:
    assert "nothing is searched" in refused(scheduler, space=Space())
    wide = space({"model.width": IntUniform(8, 32), "optim.lr": LogUniform(1e-4, 1e-1)})
    told = refused(scheduler, space=wide)
    assert (
        "'model.width'" in told
        and "--set model.width=VALUE" in told
        and told.endswith("fit for " + scheduler.name + ": optim.lr.")
    )
    conditional = space(
        {"augment.strength": Uniform(0, 1), "augment.mixup": Uniform(0, 1)},
        {"augment.mixup": When("augment.strength", 0.0)},
    )
    assert "'augment.mixup' is searched only under a condition" in refused(scheduler, space=conditional)
    rates = PerChoice("augment.flip", {"none": Uniform(0, 1)})
    per_choice = space({"augment.flip": Choice("none", "both"), "augment.mixup": rates})
    assert ("'augment.mixup' is searched only" if scheduler.name == "pbt" else "'augment.flip' is a Choice") in refused(
        scheduler, space=per_choice
    )


@pytest.mark.parametrize("scheduler", [PBT(), PB2()])
def test_a_population_needs_two_trials_and_time(scheduler: PBT | PB2) -> None:
    assert "budget.trials = 1" in refused(scheduler, trials=1)
    late = scheduler.model_copy(update={"interval_epochs": 9})
    assert "scheduler.interval_epochs = 9 is not below max_epochs = 9" in refused(late)


def test_pbt_refuses_to_burn_in_for_ever_and_pb2_a_choice() -> None:
    assert "burn_in_epochs = 9" in refused(PBT(burn_in_epochs=9))
    choice = space({"augment.mixup": Choice(0.0, 0.2), "optim.lr": LogUniform(1e-4, 1e-1)})
    assert "'augment.mixup' is a Choice" in refused(PB2(), space=choice)
    assert PBT().refusal(choice, 9, "random", 8) is None


@pytest.mark.parametrize("scheduler", [ASHA(grace_epochs=9), Median(grace_epochs=9, min_trials=2)])
def test_a_grace_period_beyond_the_end_is_refused(scheduler: ASHA | Median) -> None:
    assert scheduler.refusal(SPACE, 9, "random", 8) is None
    assert refused(scheduler, max_epochs=5) == (
        "scheduler.grace_epochs = 9 is above max_epochs = 5: no trial could ever be stopped. Lower it, or use "
        "scheduler.name=fifo."
    )


def test_hyperband_and_median_refuse_budgets_in_which_nothing_could_be_stopped() -> None:
    assert "first 3 trials always run to max_epochs" in refused(HyperBand(), trials=3)
    assert HyperBand().refusal(SPACE, 9, "random", 4) is None
    assert "no rung" in refused(HyperBand(), max_epochs=1)
    assert "scheduler.min_trials = 3 is not below budget.trials = 3" in refused(Median(), trials=3)


@pytest.mark.parametrize("max_epochs", [2, 3, 5, 9, 10, 27, 50])
@pytest.mark.parametrize("factor", [2.0, 2.5, 3.0, 4.0])
def test_hyperband_counts_its_first_bracket_as_ray_does(max_epochs: int, factor: float) -> None:
    rule = HyperBand(reduction_factor=factor)
    study = Study(
        recipe=Recipe().replace({"max_epochs": max_epochs}), space=SPACE, scheduler=FIFO(), budget=Budget(trials=500)
    ).model_copy(update={"scheduler": rule})
    board, n = Board(study), 0
    while board.wants_more():
        board.add(f"{n:05d}", {}, n)
        n += 1
    told = rule.refusal(SPACE, max_epochs, "random", n)
    assert told is not None and (n == 1 or f"first {n} trials" in told)
    assert n == 1 or rule.refusal(SPACE, max_epochs, "random", n + 1) is None


def test_a_study_says_the_refusal() -> None:
    with pytest.raises(ConfigError, match="one trial cannot learn"):
        Study(space=SPACE, scheduler=PBT(), budget=Budget(trials=1))


def test_descriptions_are_frozen_and_documented() -> None:
    for scheduler in SCHEDULERS.values():
        with pytest.raises(ValueError, match="frozen"):
            scheduler.name = "other"
        assert all(info.description for name, info in type(scheduler).model_fields.items() if name != "name")
    assert dataclasses.is_dataclass(Verdict)
