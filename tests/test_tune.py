"""Proposer, Referee and replay, driven without Ray's processes: a toy objective, the real ASHA behind."""

import random
from pathlib import Path
from typing import Any

import pytest

from cvtune.epoch import METRICS
from cvtune.errors import CvtuneError
from cvtune.journal import History, Journal, load
from cvtune.ledger import Ledger, trial_name
from cvtune.study import Study, for_data
from cvtune.tune import STOP, Referee, ray_scheduler, replay

STUDY = for_data("digits").set({"max_epochs": 9, "budget.trials": 27})


class StubTrial:
    """What the Referee uses of Ray's Trial."""

    status = "RUNNING"
    max_failures = 3

    def __init__(self, name: str, recoverable: bool = True) -> None:
        self.trial_id, self.config, self._recoverable = name, {}, recoverable

    def should_recover(self) -> bool:
        return self._recoverable

    def get_pickled_error(self) -> Exception:
        return RuntimeError("the actor died")


class StubController:
    def __init__(self) -> None:
        self.trials: list[StubTrial] = []

    def get_live_trials(self) -> list[StubTrial]:
        return self.trials


def report(step: int, score: float, **more: Any) -> dict[str, Any]:
    numbers = {name: float(step) for name in METRICS}
    return {
        **numbers,
        "step": step,
        "epoch": step,
        "val_accuracy": score,
        "attempt": 1,
        "node": "here",
        "pid": 1,
        **more,
    }


class Drive:
    """A study in a folder, with trials that report when told to."""

    def __init__(self, folder: Path, study: Study = STUDY) -> None:
        (folder / "journal").mkdir(parents=True, exist_ok=True)
        self.folder, self.study, self.history = folder, study, load(folder)
        self.journal = Journal(folder / "journal" / f"{len(self.history.terms) + 1:04d}.jsonl")
        self.ledger = Ledger(study, folder, self.journal, self.history, gpus=0, listen=lambda event: None)
        self.ledger.note("open", {"term": len(self.history.terms) + 1})
        self.inner = ray_scheduler(study)
        self.unfinished = replay(study, self.history, self.inner)
        self.referee = Referee(self.inner, self.ledger, added=set(self.history.trials))
        self.controller = StubController()

    def add(self, index: int) -> StubTrial:
        trial = StubTrial(trial_name(index))
        values = self.study.searcher.suggest(self.study.space, 0, index)
        self.ledger.note(
            "trial",
            {
                "trial": trial.trial_id,
                "index": index,
                "values": values,
                "recipe": self.study.trial(index, values).model_dump(mode="json"),
            },
        )
        self.controller.trials.append(trial)
        self.referee.on_trial_add(self.controller, trial)
        return trial

    def report(self, trial: StubTrial, step: int, score: float, **more: Any) -> str:
        answer = self.referee.on_trial_result(self.controller, trial, report(step, score, **more))
        if answer == STOP:
            self.referee.on_trial_complete(self.controller, trial, {})
            self.controller.trials.remove(trial)
        return answer

    def toy(self, quality: list[float], until: int | None = None) -> list[str]:
        """All trials side by side, scores rising with quality and step. Returns the answers in order."""
        trials = [self.add(i) for i in range(len(quality))]
        answers, done = [], 0
        for step in range(1, self.study.recipe.max_epochs + 1):
            for i, trial in enumerate(trials):
                if trial in self.controller.trials:
                    answers.append(self.report(trial, step, quality[i] * step))
                    done += 1
                    if done == until:
                        return answers
        return answers


QUALITY = [random.Random(i).random() / 10 for i in range(27)]


def test_asha_stops_the_bad_keeps_the_best_and_respects_the_budget(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.toy(QUALITY)
    best = trial_name(QUALITY.index(max(QUALITY)))
    assert drive.history.trials[best].reason == "completed"
    reasons = [r.reason for r in drive.history.trials.values()]
    assert set(reasons) == {"completed", "stopped_scheduler"}
    trained = sum(len(r.epochs) for r in drive.history.trials.values())
    assert trained < 0.6 * 27 * 9
    assert all(r.steps in (1, 3, 9) for r in drive.history.trials.values())
    assert all(r.steps == 9 for r in drive.history.trials.values() if r.reason == "completed")


def test_every_stop_and_promotion_is_on_record_with_its_reason(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.toy(QUALITY)
    decided = [c for c in drive.history.calls if c["action"]]
    assert {c["action"] for c in decided} == {"stop", "promote"}
    assert all("rung" in c["why"] and "val_accuracy" in c["why"] for c in decided if c["step"] < 9)


def test_fifo_runs_every_trial_to_its_end(tmp_path: Path) -> None:
    drive = Drive(tmp_path, STUDY.set({"scheduler.name": "fifo"}))
    drive.toy(QUALITY[:4])
    assert [(r.reason, r.steps) for r in drive.history.trials.values()] == [("completed", 9)] * 4


@pytest.mark.parametrize("brackets", [1, 3])
@pytest.mark.parametrize("until", [1, 20, 33, 60])
def test_a_replayed_study_decides_as_if_it_had_never_stopped(tmp_path: Path, until: int, brackets: int) -> None:
    study = STUDY.set({"scheduler.brackets": brackets})
    whole = Drive(tmp_path / "whole", study).toy(QUALITY)
    first = Drive(tmp_path / "halves", study)
    answers = first.toy(QUALITY, until)
    first.journal.close()
    second = Drive(tmp_path / "halves", study)
    open_names = {t.trial_id for t in second.unfinished}
    trials = {name: StubTrial(name) for name in sorted(open_names)}
    second.controller.trials = list(trials.values())
    for trial in trials.values():
        second.referee.on_trial_add(second.controller, trial)  # Ray adds them again; the scheduler must not notice
    last_step = max(r.steps for r in second.history.trials.values())
    for step in range(last_step, 10):
        for i, quality in enumerate(QUALITY):
            trial = trials.get(trial_name(i))
            if trial in second.controller.trials and second.history.trials[trial.trial_id].steps < step:
                answers.append(second.report(trial, step, quality * step))
    assert answers == whole


def test_replay_notices_a_scheduler_that_has_changed(tmp_path: Path) -> None:
    first = Drive(tmp_path)
    first.toy(QUALITY)
    first.journal.close()
    with pytest.raises(CvtuneError, match="scheduler's code has changed"):
        replay(STUDY, load(tmp_path), ray_scheduler(STUDY.set({"scheduler.reduction_factor": 2})))


def test_a_report_that_is_already_known_changes_nothing(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    trial = drive.add(0)
    drive.report(trial, 1, 0.5)
    before = len(list((tmp_path / "journal").glob("*"))), drive.ledger.calls
    assert drive.report(trial, 1, 0.9, attempt=2) == "CONTINUE"
    record = drive.history.trials["00000"]
    assert [e["val_accuracy"] for e in record.epochs] == [0.5]
    assert (len(list((tmp_path / "journal").glob("*"))), drive.ledger.calls) == before
    assert (record.attempt, record.segment) == (2, 1)


def test_nan_ends_a_trial_as_diverged_and_never_reaches_the_scheduler(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    bad, good = drive.add(0), drive.add(1)
    assert drive.report(bad, 1, 0.9, train_loss=float("nan")) == STOP
    assert drive.history.trials["00000"].reason == "diverged"
    assert drive.report(good, 1, 0.1) == "CONTINUE"  # nobody to compare with: 0.9 was not counted
    assert drive.history.best("val_accuracy", "max")[0].trial == "00001"


def test_a_trials_own_error_ends_it_and_a_lost_process_does_not(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    failing, lost, gone = drive.add(0), drive.add(1), drive.add(2)
    failure = {"failure": "code_error", "message": "ValueError: no", "attempt": 1, "node": "n", "pid": 1}
    assert drive.referee.on_trial_result(drive.controller, failing, failure) == "CONTINUE"
    assert failing.max_failures == 0 and drive.history.trials["00000"].reason == "code_error"
    drive.report(lost, 1, 0.5)
    drive.referee.on_trial_error(drive.controller, lost)
    assert drive.history.trials["00001"].reason is None and lost.config["known_step"] == 1
    gone._recoverable = False
    drive.referee.on_trial_error(drive.controller, gone)
    assert drive.history.trials["00002"].reason == "infra_lost"


def test_patience_and_budgets_end_trials_with_their_own_reasons(tmp_path: Path) -> None:
    patient = Drive(tmp_path / "a", STUDY.set({"scheduler.name": "fifo", "patience": 2}))
    trial = patient.add(0)
    assert [patient.report(trial, s, v) for s, v in ((1, 0.5), (2, 0.6), (3, 0.6), (4, 0.55))] == ["CONTINUE"] * 3 + [
        STOP
    ]
    assert patient.history.trials["00000"].reason == "stopped_patience"
    spent = Drive(tmp_path / "b", STUDY.set({"budget.epochs": 2}))
    trial = spent.add(0)
    assert [spent.report(trial, s, 0.5) for s in (1, 2)] == ["CONTINUE", STOP]
    assert spent.history.trials["00000"].message == "budget.epochs = 2"


def test_weights_of_all_but_the_best_finished_trials_are_deleted(tmp_path: Path) -> None:
    drive = Drive(tmp_path, STUDY.set({"scheduler.name": "fifo", "max_epochs": 1}))
    for i in range(6):
        trial = drive.add(i)
        (tmp_path / "trials" / trial.trial_id / "1" / "checkpoints" / "1").mkdir(parents=True)
        drive.report(trial, 1, i / 10)
    kept = sorted(p.parent.parent.name for p in (tmp_path / "trials").glob("*/*/checkpoints"))
    assert kept == ["00003", "00004", "00005"]


def test_history_of_an_empty_folder_is_empty(tmp_path: Path) -> None:
    assert load(tmp_path) == History()
