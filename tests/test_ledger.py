"""Ledger, phases and sweep, driven as Ray Tune drives them but with a toy objective: decisions, replay, budgets."""

import math
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cvtune.epoch import METRICS
from cvtune.errors import CvtuneError
from cvtune.history import History, TrialRecord, load
from cvtune.journal import Journal, read
from cvtune.ledger import Ledger
from cvtune.phases import Phases
from cvtune.study import Study, for_data

BASE = for_data("digits").set(
    {
        "objective": "val_accuracy",
        "max_epochs": 9,
        "budget.trials": 14,
        "noise_seeds": 2,
        "confirm.top": 1,
        "confirm.seeds": 2,
    }
)
SCHEDULERS: dict[str, dict[str, Any]] = {
    "fifo": {"scheduler.name": "fifo", "budget.trials": 4},
    "asha": {},
    "asha-brackets": {"scheduler.brackets": 2},
    "asha-fair": {"scheduler.controls": 4, "scheduler.strata": 2, "scheduler.grace_by_strength": 2.0},
    "promotion": {"scheduler.name": "promotion"},
    "promotion-tpe": {"scheduler.name": "promotion", "searcher.name": "tpe", "searcher.startup": 4},
    "hyperband": {"scheduler.name": "hyperband"},
    "median": {"scheduler.name": "median"},
    "pbt": {"scheduler.name": "pbt", "budget.trials": 6},
    "pbt-asynch": {"scheduler.name": "pbt", "scheduler.synch": False, "budget.trials": 5},
    "pb2": {"scheduler.name": "pb2", "budget.trials": 4, "scheduler.interval_epochs": 3},  # each takeover fits a model
    "tpe": {"searcher.name": "tpe", "searcher.startup": 4, "budget.trials": 10},
    "grid": {"searcher.name": "grid", "searcher.points": 2, "budget.trials": 30},
}
each_scheduler = pytest.mark.parametrize("which", SCHEDULERS)
HERE = {"attempt": 1, "node": "here", "pid": 1}


def numbers(step: int, epoch: int, score: float, **more: Any) -> dict[str, Any]:
    return dict.fromkeys(METRICS, 1.0) | {"step": step, "epoch": epoch, "val_accuracy": score} | more


class Killed(Exception):
    pass


class Drive:
    """One term of a study in a folder. The weights of a toy trial are one number, `skill`, kept in `saved`."""

    def __init__(self, folder: Path, study: Study, saved: dict[tuple[str, int], tuple[int, float]], slots: int = 1):
        (folder / "journal").mkdir(parents=True, exist_ok=True)
        term = 1 + len(list((folder / "journal").iterdir()))
        self.ledger = Ledger(study, folder, Journal(folder / "journal" / f"{term:04d}.jsonl"), {"CPU": 1.0})
        saw = self.ledger.recover()
        self.ledger.note("open", {"term": term, **saw, "host": "here", "pid": 1, "resources": {}})
        self.phases, self.saved, self.slots = Phases(self.ledger), saved, slots
        self.reports = 0

    @property
    def history(self) -> History:
        return self.ledger.history

    def run(self, until: int | None = None) -> History:
        """Train everything in turn, as `slots` processes would; `until` so many reports, then the driver dies."""
        while self.propose() or self.ledger.live:
            self.start()
            if not self.ledger.live:
                continue  # all that waited was given up
            going = [record for record in self.ledger.live if not record.waiting][: self.slots]
            assert going, "nothing runs and nothing is chosen: a deadlock"
            for record in going:
                if record.reason is None and not record.waiting:
                    if self.reports == until:
                        raise Killed
                    self.train(record)
        self.ledger.close()
        return self.history

    def propose(self) -> bool:
        found = False
        while self.phases.next(self.slots, self.slots) is not None:
            found = True
        return found

    def start(self) -> None:
        self.ledger.give_up_waiting()
        while self.ledger.board.pausing and self.ledger.running < self.slots:
            name = self.ledger.choose()
            if name is None:
                return
            self.ledger.start(name)

    def train(self, record: TrialRecord) -> None:
        """One epoch: from the trial's own weights, or its donor's if it has just taken them over."""
        place = record.trial, record.steps
        if record.exploits and record.exploits[-1].step == record.steps:
            place = record.exploits[-1].donor, record.exploits[-1].donor_step
        age, skill = self.saved[place] if place[1] else (0, 0.0)
        skill += (self.quality(record) - skill) / 4
        self.saved[record.trial, record.steps + 1] = age + 1, skill
        self.reports += 1
        self.ledger.report(record.trial, numbers(record.steps + 1, age + 1, skill), HERE)

    @staticmethod
    def quality(record: TrialRecord) -> float:
        recipe = record.current
        strength = abs(recipe.augment.strength - 0.4) + abs((recipe.regularize.strength or 0) - 0.3)
        return 0.9 - 0.4 * strength - 0.1 * abs(math.log10(recipe.optim.lr / 3e-3)) + recipe.seed % 97 / 1e5


def study_of(which: str) -> Study:
    return BASE.set(SCHEDULERS[which])


def essence(history: History) -> list[Any]:
    """What may not depend on when a driver was killed."""
    trials = [
        (r.trial, r.role, r.label, r.values, r.reason, [(e["step"], e["epoch"], e["val_accuracy"]) for e in r.epochs])
        for r in history.trials.values()
    ]
    return [trials, [{k: v for k, v in d.items() if k != "t"} for d in history.decisions]]


@each_scheduler
@pytest.mark.parametrize("slots", [1, 3])
def test_every_trial_ends_once_and_the_search_is_confirmed(tmp_path: Path, which: str, slots: int) -> None:
    history = Drive(tmp_path, study_of(which), {}, slots).run()
    assert all(record.reason for record in history.trials.values())
    assert all(record.age <= 9 for record in history.trials.values())
    assert len(history.of("noise")) == 2
    assert {r.label for r in history.of("confirm")} >= {"trivial"} and len(history.of("confirm")) >= 4
    search = len(history.of("search", "control"))
    assert search == (8 if which == "grid" else study_of(which).budget.trials)
    ended = sum(event.get("reason") is not None for event in read(tmp_path))
    ended += sum(a["act"] == "stop" for event in read(tmp_path) for a in event.get("acts", ()))
    assert ended == len(history.trials)


@each_scheduler
def test_a_killed_driver_goes_on_as_if_nothing_had_happened(tmp_path: Path, which: str) -> None:
    whole = essence(Drive(tmp_path / "whole", study_of(which), {}).run())
    rng, saved = random.Random(which), {}
    for term in range(30):
        drive = Drive(tmp_path / "killed", study_of(which), saved)
        try:
            killed = drive.run(until=rng.randint(1, 25))
        except Killed:
            continue
        assert term > 0, "never killed"
        assert essence(killed) == whole
        assert essence(load(tmp_path / "killed")) == whole
        return
    raise AssertionError("did not come to an end")


@pytest.mark.parametrize("which", ["pbt", "pb2"])
def test_a_synchronous_population_decides_the_same_however_many_run_at_once(tmp_path: Path, which: str) -> None:
    def exploits(slots: int) -> list[Any]:
        history = Drive(tmp_path / str(slots), study_of(which), {}, slots).run()
        return sorted((d["trial"], d["step"], d["donor"], str(d["values"])) for d in history.decisions if "donor" in d)

    assert exploits(1) == exploits(3) == exploits(6) and exploits(2)


@pytest.mark.parametrize("which", ["asha", "promotion", "pbt", "hyperband"])
def test_a_journal_torn_at_any_byte_of_its_last_line_is_taken_up(tmp_path: Path, which: str) -> None:
    saved: dict[tuple[str, int], tuple[int, float]] = {}
    whole = essence(Drive(tmp_path / "whole", study_of(which), {}).run())
    with pytest.raises(Killed):
        Drive(tmp_path / "torn", study_of(which), saved).run(until=23)
    content = (tmp_path / "torn" / "journal" / "0001.jsonl").read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for cut in [*range(last, len(content), max(1, (len(content) - last) // 25)), len(content) - 1]:
        folder = tmp_path / f"cut{cut}"
        (folder / "journal").mkdir(parents=True)
        (folder / "journal" / "0001.jsonl").write_bytes(content[:cut])
        assert essence(Drive(folder, study_of(which), dict(saved)).run()) == whole
        shutil.rmtree(folder)


def test_lines_written_after_a_takeover_are_ignored(tmp_path: Path) -> None:
    saved: dict[tuple[str, int], tuple[int, float]] = {}
    frozen = Drive(tmp_path, study_of("asha"), saved)
    with pytest.raises(Killed):
        frozen.run(until=10)
    whole = essence(Drive(tmp_path, study_of("asha"), saved).run())
    victim = frozen.ledger.live[0].trial
    frozen.ledger.report(victim, numbers(frozen.history.trials[victim].steps + 1, 1, 0.99), HERE)  # thawed
    assert essence(load(tmp_path)) == whole


def test_replay_notices_a_scheduler_that_has_changed(tmp_path: Path) -> None:
    Drive(tmp_path, study_of("asha"), {}).run()
    with pytest.raises(CvtuneError, match="has changed"):
        Drive(tmp_path, study_of("asha").set({"scheduler.reduction_factor": 2}), {})


def test_replay_notices_a_searcher_that_has_changed(tmp_path: Path) -> None:
    Drive(tmp_path, study_of("fifo"), {}).run()
    with pytest.raises(CvtuneError, match="values = "):
        Drive(tmp_path, study_of("fifo").set({"searcher.seed": 5}), {})


@pytest.mark.parametrize("which", ["asha", "promotion", "hyperband", "median", "pbt", "pb2"])
def test_every_stop_and_exploit_is_explained_with_numbers(tmp_path: Path, which: str) -> None:
    history = Drive(tmp_path, study_of(which), {}, slots=2).run()
    decided = [d for d in history.decisions if d["action"] in ("stop", "exploit", "promote")]
    assert {d["action"] for d in decided} & {"stop", "exploit"}
    assert all(any(c.isdigit() for c in d["why"]) for d in decided), decided
    for exploit in (d for d in decided if d["action"] == "exploit"):
        assert set(exploit["values"]) == set(study_of(which).space.domains) and exploit["donor"] in history.trials


def single(tmp_path: Path, **settings: Any) -> tuple[Drive, list[str]]:
    """A drive with three trials proposed and nothing else."""
    study = BASE.set({"noise_seeds": 0, "confirm.top": 0, "budget.trials": 3, "scheduler.name": "fifo", **settings})
    drive = Drive(tmp_path, study, {}, slots=3)
    drive.propose()
    return drive, list(drive.history.trials)


def test_a_report_that_is_known_already_is_compared_and_changes_nothing(tmp_path: Path) -> None:
    drive, (name, *_) = single(tmp_path)
    drive.ledger.report(name, numbers(1, 1, 0.5), HERE)
    again = {**HERE, "attempt": 2}
    assert drive.ledger.report(name, numbers(1, 1, 0.5), again).answer == "go"
    assert drive.ledger.report(name, numbers(1, 1, 0.9), again).answer == "go"
    record = drive.history.trials[name]
    assert [e["val_accuracy"] for e in record.epochs] == [0.5] and (record.attempt, record.segment) == (2, 1)
    assert [e["same"] for e in read(tmp_path) if e["kind"] == "repeat"] == [True, False]


@pytest.mark.parametrize("bad", [{"train_loss": math.nan}, {"val_loss": math.inf}, {"val_accuracy": math.nan}])
def test_nan_ends_a_trial_as_diverged_and_never_reaches_the_scheduler(tmp_path: Path, bad: Mapping[str, Any]) -> None:
    drive, (first, second, _) = single(tmp_path, **{"scheduler.name": "asha"})
    assert drive.ledger.report(first, numbers(1, 1, 0.9) | dict(bad), HERE).answer == "stop"
    assert drive.history.trials[first].reason == "diverged"
    assert drive.ledger.report(second, numbers(1, 1, 0.1), HERE).answer == "go"
    assert "no other trial" in drive.history.decisions[-1]["why"]  # 0.9 was not counted
    best = drive.history.best(drive.ledger.study)
    assert best is not None and best[0].trial == second


def test_patience_and_budgets_end_trials_with_their_own_reasons(tmp_path: Path) -> None:
    drive, (name, *_) = single(tmp_path / "a", patience=2)
    answers = [drive.ledger.report(name, numbers(s, s, v), HERE).answer for s, v in enumerate((0.5, 0.6, 0.6, 0.55), 1)]
    assert answers == ["go"] * 3 + ["stop"] and drive.history.trials[name].reason == "stopped_patience"
    drive, (name, *_) = single(tmp_path / "b", **{"budget.epochs": 2})
    assert [drive.ledger.report(name, numbers(s, s, 0.5), HERE).answer for s in (1, 2)] == ["go", "stop"]
    assert drive.history.trials[name].message == "budget.epochs = 2"


@pytest.mark.parametrize(("which", "budget"), [("pbt", 31), ("hyperband", 31), ("promotion", 18)])
def test_what_waits_when_the_budget_is_spent_ends_without_another_epoch(
    tmp_path: Path, which: str, budget: int
) -> None:
    study = study_of(which).set({"budget.epochs": budget, "noise_seeds": 0})
    history = Drive(tmp_path, study, {}).run()
    assert history.epochs == budget and "stopped_budget" in {r.reason for r in history.of("search")}


def test_what_promotion_leaves_waiting_is_stopped_with_its_numbers_when_the_search_is_over(tmp_path: Path) -> None:
    history = Drive(tmp_path, study_of("promotion"), {}, slots=3).run()
    left = [r for r in history.of("search") if r.reason == "stopped_scheduler"]
    stops = {d["trial"]: d for d in history.decisions if d["action"] == "stop"}
    assert left and {r.trial for r in left} == set(stops)
    assert all("go on; the search is over" in r.message and stops[r.trial]["step"] == r.steps for r in left)
    completed = [r for r in history.of("search") if r.reason == "completed"]
    assert len(completed) >= 1 and len(left) + len(completed) == 14
    at_first = sorted(r.epochs[0]["val_accuracy"] for r in history.of("search"))
    assert all(r.epochs[0]["val_accuracy"] >= at_first[-8] for r in completed)  # nobody came through by being first


def test_without_a_gpu_the_budget_counts_cpu_hours(tmp_path: Path) -> None:
    drive, (name, *_) = single(tmp_path, **{"budget.gpu_hours": 1.0})
    assert drive.ledger.report(name, numbers(1, 1, 0.5, seconds=3000.0), HERE).answer == "go"
    assert drive.ledger.report(name, numbers(2, 2, 0.5, seconds=3000.0), HERE).answer == "go"
    assert drive.ledger.report(name, numbers(3, 3, 0.5), HERE).answer == "stop"
    assert drive.history.trials[name].message == "budget.gpu_hours = 1"


def test_gpu_hours_are_counted_by_the_share_that_trials_had_at_that_time(tmp_path: Path) -> None:
    """A trial ran out of memory, and all get more of a GPU from then on: what was trained before costs no more."""
    drive, (name, *_) = single(tmp_path, **{"budget.gpu_hours": 0.8})
    drive.ledger.note("open", {"resources": {"CPU": 1.0, "GPU": 0.25}})
    assert drive.ledger.report(name, numbers(1, 1, 0.5, seconds=7200.0), HERE).answer == "go"
    drive.ledger.note("share", {"trials": 2, "why": "out of memory", "gpu": 0.5})
    assert drive.ledger.report(name, numbers(2, 2, 0.5, seconds=1800.0), HERE).answer == "go"
    assert drive.history.device_s == 0.25 * 7200 + 0.5 * 1800
    assert drive.ledger.report(name, numbers(3, 3, 0.5, seconds=400.0), HERE).answer == "go"  # 2,700 of 2,880 s
    assert drive.ledger.report(name, numbers(4, 4, 0.5), HERE).answer == "stop"


def test_a_trial_above_a_limit_ends_at_once_and_is_never_best(tmp_path: Path) -> None:
    drive, (heavy, light, _) = single(tmp_path, **{"limits.parameters": 1000})
    assert drive.ledger.report(heavy, numbers(1, 1, 0.9, parameters=2000), HERE).answer == "stop"
    drive.ledger.report(light, numbers(1, 1, 0.1, parameters=900), HERE)
    record = drive.history.trials[heavy]
    assert record.reason == "stopped_budget" and "limits.parameters = 1000" in record.message
    assert [r.trial for r, _ in drive.history.ranked(drive.ledger.study)] == [light]


def test_controls_are_drawn_first_run_to_their_end_and_say_when_they_would_have_stopped(tmp_path: Path) -> None:
    history = Drive(tmp_path, study_of("asha-fair"), {}, slots=2).run()
    controls = history.of("control")
    assert len(controls) == 4 and {r.reason for r in controls} == {"completed"}
    assert max(r.index for r in controls) < min(r.index for r in history.of("search"))
    other = Drive(tmp_path / "other", study_of("asha-fair").set({"searcher.name": "tpe"}), {}, slots=1).run()
    assert [r.values for r in other.of("control")] == [r.values for r in controls]  # no result changes them


def test_weights_are_kept_for_those_who_may_still_ask(tmp_path: Path) -> None:
    """At every report: the newest of each live trial, every donor that is waited for, and the last of the best."""
    study, saved = study_of("pbt"), {}
    drive = Drive(tmp_path, study, saved)

    def place(trial: str, step: int) -> Path:
        return tmp_path / "trials" / trial / "1" / "checkpoints" / str(step)

    train = drive.train

    def train_and_save(record: TrialRecord) -> None:
        donor = record.exploits[-1] if record.exploits and record.exploits[-1].step == record.steps else None
        if donor is not None:
            assert place(donor.donor, donor.donor_step).is_dir(), "the donor's weights are gone"
        elif record.steps:
            assert place(record.trial, record.steps).is_dir()
        place(record.trial, record.steps + 1).mkdir(parents=True)
        train(record)
        drive.ledger._journal.commit()  # so that what may go does go

    drive.train = train_and_save  # type: ignore[method-assign]
    history = drive.run()
    assert any(record.exploits for record in history.trials.values())
    left = {p.parent.parent.parent.name: int(p.name) for p in tmp_path.glob("trials/*/*/checkpoints/*")}
    finals = {r.trial: r.steps for r in history.of("noise", "confirm")}
    best = sorted(history.of("search"), key=lambda r: -max(e["val_accuracy"] for e in r.epochs))[:3]
    assert left == finals | {r.trial: r.steps for r in best}


def test_points_come_first_and_a_prior_is_learned_from(tmp_path: Path) -> None:
    study = BASE.model_copy(update={"points": ({"augment.strength": 0.125}, {"optim.lr": 0.01})})
    history = Drive(tmp_path, study, {}).run()
    first, second, *_ = history.of("search")
    assert first.values["augment.strength"] == 0.125 and second.values["optim.lr"] == 0.01
    assert set(first.values) == set(study.space.domains)


def test_an_expected_improvement_below_the_noise_ends_the_search(tmp_path: Path) -> None:
    study = BASE.set({"scheduler.name": "fifo", "budget.trials": 200, "budget.until_noise": True, "max_epochs": 2})
    drive = Drive(tmp_path, study, {}, slots=2)
    quality = drive.quality
    drive.quality = lambda record: quality(record) + record.recipe.seed % 97 / 300  # type: ignore[method-assign]
    history = drive.run()
    assert 6 <= len(history.of("search")) < 200  # two noise trials make eight points
    assert "below the noise floor" in (drive.phases.over or "")


def test_history_of_an_empty_folder_is_empty(tmp_path: Path) -> None:
    assert load(tmp_path) == History()
