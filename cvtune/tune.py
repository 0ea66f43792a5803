"""Where the ledger meets Ray Tune: `Proposer` hands out trials, `Referee` passes reports on and carries out decisions.

Both are what Ray Tune calls; neither decides anything. Ray's own trials hold the name, the resources and the process;
everything else is in the history, so a trial that is taken up again by a later term needs nothing from Ray's state.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback, PlacementGroupFactory
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.stopper import Stopper

from cvtune.epoch import METRICS
from cvtune.history import TrialRecord
from cvtune.ledger import Ledger, sparse
from cvtune.packing import fewer
from cvtune.phases import Phases
from cvtune.pulse import HUNG_FILE

CONTINUE, STOP, NOOP = TrialScheduler.CONTINUE, TrialScheduler.STOP, TrialScheduler.NOOP


class Referee(TrialScheduler):
    """Passes every report to the ledger, and does to Ray's trials what the ledger answers."""

    def __init__(self, ledger: Ledger, job: Mapping[str, Any], slots: Callable[[], int]) -> None:
        """`job` is what every process is told beside its trial; `slots` says how many trials may run at once."""
        super().__init__()
        self._ledger, self._job, self._slots = ledger, job, slots
        self._trials: dict[str, Trial] = {}
        self._cramped: set[str] = set()  # trials that get a larger share of a GPU
        self._kept: dict[str, Any] = {}  # trials that wait -> resources of the process that is kept for one of them
        self._told: set[str] = set()  # trials that lost a process before they had begun in it
        self._echoed: set[str] = set()  # of these, those that Ray has told of a second time

    def config(self, record: TrialRecord) -> dict[str, Any]:
        """What the process that takes up a trial has to know. Plain JSON."""
        exploit = record.exploits[-1] if record.exploits else None
        took_over = exploit and {
            "donor": exploit.donor,
            "donor_step": exploit.donor_step,
            "step": exploit.step,
            "attempt": exploit.attempt,
        }
        trial = {"trial": record.trial, "recipe": sparse(record.current), "known_step": record.steps}
        deadline = None if record.role == "confirm" else self._ledger.deadline
        gpu = self._ledger.resources.get("GPU", 0)
        room = {"gpu": gpu, "widens": 0 < gpu < 1 and self._ledger.study.resources.gpu == "auto"}
        return {**self._job, **trial, **room, "exploit": took_over, "deadline": deadline}

    def room(self) -> PlacementGroupFactory:
        """What Ray gives to a trial that begins now."""
        labels = self._ledger.study.resources.labels
        return PlacementGroupFactory([dict(self._ledger.resources)], bundle_label_selector=[labels])

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the ledger's scheduler was made with its metric and mode

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._trials[trial.trial_id] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        ledger, name = self._ledger, trial.trial_id
        if "failure" in result:  # the process raises at its next call, so that Ray does not reuse it
            if result["failure"] == "oom_gpu" and self._widened(trial):
                trial.max_failures = trial.run_metadata.num_failures + 1  # once more, however often it was lost
                return str(CONTINUE)
            trial.max_failures = 0
            self._stop(tune_controller, ledger.end(name, result["failure"], result["message"]))
            return str(CONTINUE)
        if "cut" in result:
            if result["cut"] == "deadline":  # by the worker's clock, which may be ahead of ours
                message = ledger.spent() or f"budget.time_s = {ledger.study.budget.time_s:g}"
                self._stop(tune_controller, ledger.end(name, "stopped_budget", message))
            if result["cut"] == "full":  # the run ends as if the journal had found it: a later one goes on
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), result["file"])
            return str(STOP)  # without a reason: it was broken off and is taken up by the next term
        identity = {key: result[key] for key in ("attempt", "node", "pid")}
        ruling = ledger.report(name, {m: result.get(m) for m in METRICS}, identity)
        self._stop(tune_controller, ruling.stops)
        if ruling.answer == "pause":
            self._keep(tune_controller, trial)
            tune_controller.pause_trial(trial, should_checkpoint=False)  # its checkpoint is on the disk
            return str(NOOP)
        return str(STOP if ruling.answer == "stop" else CONTINUE)

    def _widened(self, trial: Trial) -> bool:
        """Whether a trial that ran out of memory gets a larger share of a GPU: where `auto` has cut it too small."""
        ledger, had = self._ledger, trial.config["gpu"]
        packing = ledger.history.packing if ledger.study.resources.gpu == "auto" else None
        if packing is None or not 0 < had < 1:
            return False
        if had >= packing.share:  # else another trial has found that out since this one began
            ledger.note("share", fewer(packing, trial.trial_id).event())
        self._cramped.add(trial.trial_id)
        return True

    def _keep(self, controller: Any, trial: Trial) -> None:
        """Have Ray keep the process of a trial that is about to wait, for whichever is chosen next.

        Ray ends all but one of the processes that nobody asks for at the moment. Where a whole population waits for
        its last trial, that would be all but one of its processes, which take seconds to come back.
        """
        self._kept[trial.trial_id] = trial.placement_group_factory
        controller._tune_controller._actor_cache.increase_max(trial.placement_group_factory)

    def _let_go(self, controller: Any, name: str) -> None:
        """The trial no longer waits."""
        if name in self._kept:
            controller._tune_controller._actor_cache.decrease_max(self._kept.pop(name))

    def _stop(self, controller: Any, names: tuple[str, ...]) -> None:
        """Stop other trials that a decision ended. Exploits wait until their trial is chosen."""
        for name in names:
            self._let_go(controller, name)
            if name in self._trials:  # else it waits since an earlier term and was not handed out in this one
                controller.stop_trial(self._trials[name])

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The ledger ended it before Ray did."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """See `on_trial_complete`."""

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        record = self._ledger.history.trials[trial.trial_id]
        if trial.trial_id in self._told and trial.status == Trial.PENDING:
            self._told.remove(trial.trial_id)
            self._echoed.add(trial.trial_id)
            trial.run_metadata.num_failures -= 1
            trial.set_status(Trial.ERROR)  # else Ray gives it up now; see `stand_by`
            return
        if trial.should_recover() and trial.status == Trial.ERROR:  # only then does Ray take it up again
            resetting: set[Trial] = getattr(tune_controller, "_resetting_trials", set())
            if trial in resetting:  # Ray tells of it twice, and would wait for its old process for ever
                resetting.remove(trial)
                self._told.add(trial.trial_id)
            trial.update_resources(self.room())
            hung = self._was_hung(record)
            if hung:
                trial.max_failures = trial.run_metadata.num_failures  # once more, and no more
            why = "made no progress" if hung else "its process or node was lost"
            if trial.trial_id in self._cramped:
                self._cramped.remove(trial.trial_id)
                why = "ran out of memory in its share of a GPU"
            self._ledger.note("retry", {"trial": record.trial, "step": record.steps, "action": "retry", "why": why})
            trial.set_config(self.config(record))
            return
        reason, message = lost(trial.error_file and Path(trial.error_file))
        if self._was_hung(record):
            reason, message = "hung", "made no progress, twice; the stacks are in its log"
        self._stop(tune_controller, self._ledger.end(record.trial, reason, message))

    def stand_by(self, trial: Trial) -> None:
        """Let Ray take up a trial after all whose lost process it has told of twice."""
        if trial.trial_id in self._echoed:
            self._echoed.remove(trial.trial_id)
            trial.set_status(Trial.PENDING)

    def _was_hung(self, record: TrialRecord) -> bool:
        """Whether the trial's newest attempt ended itself because it made no progress."""
        attempts = [p for p in (self._ledger.folder / "trials" / record.trial).glob("*") if p.name.isdigit()]
        return bool(attempts) and (max(attempts, key=lambda p: int(p.name)) / HUNG_FILE).exists()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        ledger = self._ledger
        # Nodes join and leave: as many trials may wait for a process as could run. What a scheduler is given is a
        # wrapper that warns of calls it does not know.
        tune_controller._tune_controller.update_max_pending_trials(self._slots())
        if not ledger.board.pausing:
            return None  # trials that do not wait for the scheduler are started by Ray in their order
        self._stop(tune_controller, ledger.give_up_waiting())
        if ledger.running >= self._slots():
            return None
        name = ledger.choose()
        if name is None:
            return None
        ledger.start(name)
        self._let_go(tune_controller, name)
        trial = self._trials[name]
        trial.set_config(self.config(ledger.history.trials[name]))
        return trial

    def debug_string(self) -> str:
        return "cvtune"


def lost(written: Path | None) -> tuple[str, str]:
    """The terminal reason of a trial whose process was lost, and what Ray says of the last loss.

    Args:
        written: the file to which Ray Tune adds each failure of a trial; it lies on this machine. Ray's own way to ask
            for the error looks into the storage, where it is later.
    """
    try:
        text = written.read_text(errors="replace") if written else ""
    except OSError:
        text = ""
    told = text.rpartition("Failure # ")[2].partition("\n")[2]
    sentences = [line.strip() for line in told.splitlines() if line[:1] not in ("", "\t")]  # not which class and ids
    message = " ".join(sentences)[:600]
    memory = ("low on memory", "memory usage threshold", "memory_usage_threshold")  # words of Ray's memory monitor
    return "oom_host" if any(words in message for words in memory) else "infra_lost", message


class Echo(Callback):
    """Listens for what Ray Tune tells twice: that a process died while it was being handed to its next trial.

    The first time Ray makes the trial wait for another process; the second time it would give it up.
    """

    def __init__(self, referee: Referee) -> None:
        self._referee = referee

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._referee.stand_by(trial)


class Proposer(SearchAlgorithm):
    """Hands out trials: first those that an earlier term left unfinished, then new ones."""

    def __init__(self, ledger: Ledger, referee: Referee, phases: Phases, slots: Callable[[], int]) -> None:
        self._ledger, self._referee, self._phases, self._slots = ledger, referee, phases, slots
        self._unfinished = sorted(ledger.live, key=lambda record: not record.waiting)  # any of these may be chosen
        self._experiment: Experiment | None = None

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0]

    @property
    def total_samples(self) -> int:
        return self._ledger.study.budget.trials

    def next_trial(self) -> Trial | None:
        most = self._ledger.study.resources.max_concurrent
        self._unfinished = [record for record in self._unfinished if record.reason is None]
        if self._unfinished:
            handed_out = self._ledger.running - sum(not record.waiting for record in self._unfinished)
            if self._unfinished[0].waiting or most is None or handed_out < most:
                return self._trial(self._unfinished.pop(0))
            return None
        record = self._phases.next(self._slots(), most)
        return None if record is None else self._trial(record)

    def is_finished(self) -> bool:
        """Once asked to end, else when no trial is left: before, Ray would end a process that is between two trials."""
        nothing_left = self._phases.over is not None and not self._ledger.live and not self._unfinished
        return nothing_left or bool(super().is_finished())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The referee has it."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The ledger knows."""

    def _trial(self, record: TrialRecord) -> Trial:
        assert self._experiment is not None
        trial = Trial(
            self._experiment.run_identifier,
            config=self._referee.config(record),
            trial_id=record.trial,
            storage=self._experiment.storage,
            placement_group_factory=self._referee.room(),
            max_failures=self._ledger.study.resources.retries,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        if record.waiting:
            trial.set_status(Trial.PAUSED)  # Ray starts these only when the referee chooses them
        return trial


class EndOfStudy(Stopper):
    """Ends Ray Tune's loop once `asked` is set."""

    def __init__(self, asked: threading.Event) -> None:
        self._asked = asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._asked.is_set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into a state file that nobody reads
