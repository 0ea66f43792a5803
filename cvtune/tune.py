"""Where cvtune's descriptions become Ray Tune's objects, every call is put on record, and a record is replayed.

`Proposer` hands out trials, `Referee` decides on their reports; both are what Ray Tune calls. A scheduler of Ray's own
sits behind the Referee: its random state is set before each call from the study's seed and the call's number, so the
same record always leads to the same decisions.
"""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.stopper import Stopper

from cvtune.epoch import METRICS
from cvtune.errors import CvtuneError
from cvtune.journal import History, TrialRecord
from cvtune.ledger import Ledger, sparse
from cvtune.schedulers import ASHA
from cvtune.study import Study

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def ray_scheduler(study: Study) -> TrialScheduler:
    """Ray's scheduler for a study's description."""
    if isinstance(study.scheduler, ASHA):
        return ASHAScheduler(
            time_attr="step",
            metric=study.objective,
            mode=study.better,
            max_t=study.recipe.max_epochs,
            grace_period=study.scheduler.grace_epochs,
            reduction_factor=study.scheduler.reduction_factor,
            brackets=study.scheduler.brackets,
        )
    return FIFOScheduler()


class Referee(TrialScheduler):
    """Decides on every report: the study's own rules here, the scheduler's behind, each call and answer on record."""

    def __init__(self, inner: TrialScheduler, ledger: Ledger, added: set[str]) -> None:
        super().__init__()
        self._inner, self._ledger, self._added = inner, ledger, added
        self._chosen: str | None = None
        self._seen: dict[str, str] = {}  # last recorded status of each trial

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the inner scheduler was made with its metric and mode

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if trial.trial_id not in self._added:  # a trial that is taken up again is no new one
            self._added.add(trial.trial_id)
            self._ask("on_trial_add", tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        ledger, name = self._ledger, trial.trial_id
        if "failure" in result:  # the process raises at its next call, so that Ray does not reuse it
            trial.max_failures = 0
            ledger.end(name, result["failure"], result["message"])
            return str(CONTINUE)
        if "cut" in result:
            ledger.end(name, "stopped_budget", ledger.spent() or "")
            return str(STOP)
        record = ledger.history.trials[name]
        if result["attempt"] != record.attempt:
            segment = {key: result[key] for key in ("attempt", "node", "pid")}
            ledger.note("segment", {"trial": name, "segment": record.segment + 1, "step": record.steps, **segment})
        if result["step"] <= record.steps:
            return str(CONTINUE)  # a lost process had reported it already
        ledger.note(
            "epoch",
            {"trial": name, "attempt": record.attempt, "segment": record.segment, **{m: result[m] for m in METRICS}},
        )
        if not np.isfinite([result["train_loss"], result["val_loss"], result[ledger.study.objective]]).all():
            ledger.end(name, "diverged", f"train_loss = {result['train_loss']}, val_loss = {result['val_loss']}")
            return str(STOP)
        answer, why = self._ask("on_trial_result", tune_controller, trial, record.epochs[-1])
        over = ledger.close_trial(record, why if answer == STOP else None)
        return str(STOP if over else answer)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        record = self._ledger.history.trials[trial.trial_id]
        if record.reason == "diverged" or not record.epochs:  # no number that the scheduler could take
            self._ask("on_trial_remove", tune_controller, trial)
        else:
            self._ask("on_trial_complete", tune_controller, trial, record.epochs[-1])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        record = self._ledger.history.trials[trial.trial_id]
        if trial.should_recover():
            trial.config["known_step"] = record.steps
            self._record("retry", trial, record.steps, None, "retry", "its process or node was lost")
            return
        error = trial.get_pickled_error() if record.reason is None else None
        is_memory = type(error).__name__ == "OutOfMemoryError"
        self._ledger.end(trial.trial_id, "oom_host" if is_memory else "infra_lost", str(error or "").strip()[:2000])
        self._ask("on_trial_error", tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._ask("on_trial_remove", tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self._reseed()
        chosen: Trial | None = self._inner.choose_trial_to_run(tune_controller)
        if chosen is not None and chosen.trial_id != self._chosen:
            self._record("choose_trial_to_run", chosen, 0, chosen.trial_id, None, "")
        self._chosen = None if chosen is None else chosen.trial_id
        return chosen

    def debug_string(self) -> str:
        return str(self._inner.debug_string())

    def _ask(self, hook: str, controller: Any, trial: Trial, epoch: dict[str, Any] | None = None) -> tuple[str, str]:
        why, is_rung = _rung(self._inner, trial, epoch) if hook == "on_trial_result" else ("", False)
        self._reseed()
        answer = call(self._inner, hook, controller, trial, epoch)
        action = "stop" if answer == STOP else "promote" if is_rung else None
        step = 0 if epoch is None else epoch["step"]
        self._record(hook, trial, step, answer, action, why, self._new_statuses(controller))
        return str(answer), why

    def _new_statuses(self, controller: Any) -> dict[str, str]:
        """Status of every live trial, which some schedulers look at, where it changed since it was last recorded."""
        now = {t.trial_id: t.status for t in controller.get_live_trials()}
        changed = {name: status for name, status in now.items() if self._seen.get(name) != status}
        self._seen = now
        return changed

    def _reseed(self) -> None:
        reseed(self._ledger.study, self._ledger.calls)

    def _record(
        self,
        hook: str,
        trial: Trial,
        step: int,
        answer: str | None,
        action: str | None,
        why: str,
        statuses: dict[str, str] | None = None,
    ) -> None:
        event = {"hook": hook, "trial": trial.trial_id, "step": step, "answer": answer}
        self._ledger.call("scheduler", {**event, "action": action, "why": why, "statuses": statuses or {}})


class Proposer(SearchAlgorithm):
    """Hands out trials: first those that an earlier term left unfinished, then new ones from the searcher."""

    def __init__(
        self, ledger: Ledger, job: dict[str, Any], resources: dict[str, float], unfinished: list[Trial]
    ) -> None:
        self._ledger, self._job, self._resources = ledger, job, resources
        self._unfinished = unfinished
        self._live: set[str] = set()
        self._experiment: Experiment | None = None

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0]

    @property
    def total_samples(self) -> int:
        return self._ledger.study.budget.trials

    def next_trial(self) -> Trial | None:
        study, ledger = self._ledger.study, self._ledger
        if len(self._live) >= (study.resources.max_concurrent or study.budget.trials):
            return None
        if self._unfinished:
            stub = self._unfinished.pop(0)
            return self._trial(ledger.history.trials[stub.trial_id])
        if ledger.next_index >= study.budget.trials or ledger.spent() is not None:
            self.set_finished()
            return None
        values = study.searcher.suggest(study.space, study.recipe.seed, ledger.next_index)
        return self._trial(ledger.propose(values))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    def _trial(self, record: TrialRecord) -> Trial:
        assert self._experiment is not None
        self._live.add(record.trial)
        return Trial(
            self._experiment.run_identifier,
            config={**self._job, "trial": record.trial, "recipe": sparse(record.recipe), "known_step": record.steps},
            trial_id=record.trial,
            storage=self._experiment.storage,
            placement_group_factory=PlacementGroupFactory([self._resources]),
            max_failures=self._ledger.study.resources.retries,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )


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


def call(inner: TrialScheduler, hook: str, controller: Any, trial: Trial, epoch: dict[str, Any] | None) -> str | None:
    """One call of a scheduler's hook, live or in replay."""
    answer: str | None = getattr(inner, hook)(
        *((controller, trial) if epoch is None else (controller, trial, dict(epoch)))
    )
    return answer


def reseed(study: Study, number: int) -> None:
    """Set the global random state that Ray's schedulers use, from the study's seed and the number of the call."""
    seed = int(np.random.SeedSequence([study.recipe.seed, number]).generate_state(1, np.uint32)[0])
    random.seed(seed)
    np.random.seed(seed)


def replay(study: Study, history: History, inner: TrialScheduler) -> list[Trial]:
    """Bring a fresh scheduler to where the journal left it. Returns the trials that have not ended.

    Raises:
        CvtuneError: the scheduler now answers differently from what the journal says.
    """
    stubs = {name: Trial("cvtune", trial_id=name, stub=True) for name in history.trials}
    epochs = {(r.trial, e["step"]): e for r in history.trials.values() for e in r.epochs}
    for event in history.calls:
        if event["who"] != "scheduler" or event["hook"] in ("retry", "choose_trial_to_run"):
            continue
        for name, status in event["statuses"].items():
            stubs[name].status = status
        reseed(study, event["call"])
        with_result = event["hook"] in ("on_trial_result", "on_trial_complete")
        epoch = epochs[event["trial"], event["step"]] if with_result else None
        answer = call(inner, event["hook"], None, stubs[event["trial"]], epoch)
        if answer != event["answer"]:
            raise CvtuneError(
                f"replaying the journal, {event['hook']} of trial {event['trial']} at step {event['step']} answers "
                f"{answer!r} where it had answered {event['answer']!r}: the scheduler's code has changed. "
                "Resume with the versions in study.json, or start anew under another --name."
            )
    return [stubs[name] for name, record in history.trials.items() if record.reason is None]


def _rung(inner: Any, trial: Trial, epoch: dict[str, Any] | None) -> tuple[str, bool]:
    """What ASHA is about to compare, in words, and whether this report stands at a rung."""
    bracket = getattr(inner, "_trial_info", {}).get(trial.trial_id)
    if bracket is None or epoch is None or epoch["step"] >= inner._max_t:
        return "", False
    for milestone, recorded in bracket._rungs:
        if epoch["step"] >= milestone:
            if trial.trial_id in recorded:
                return "", False
            sign, cutoff = inner._metric_op, bracket.cutoff(recorded)
            bar = "no other trial to compare with" if cutoff is None else f"cutoff {sign * cutoff:.4g}"
            return f"rung {milestone:g}: {inner._metric} = {epoch[inner._metric]:.4g}, {bar}", True
    return "", False
