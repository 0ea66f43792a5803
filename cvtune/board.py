"""The board: what a scheduler of Ray Tune sees instead of Ray, and what the ledger asks instead of a scheduler.

Behind it stand stub trials that train nothing. What a scheduler answers follows from the events put to the board, and
their numbers, alone: so the same events give the same answers in a later term, on another machine, with other places
for trials. No Ray cluster is needed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from cvtune.explained import Pointer, Reason
from cvtune.ray_schedulers import ray_scheduler
from cvtune.recipe import Value
from cvtune.schedulers import PB2, PBT, HyperBand, Promotion
from cvtune.study import Study

ANSWERS: Mapping[str, Literal["go", "stop", "pause"]] = {
    TrialScheduler.CONTINUE: "go",
    TrialScheduler.STOP: "stop",
    TrialScheduler.PAUSE: "pause",
    TrialScheduler.NOOP: "pause",  # what PBT answers when it has paused the trial itself, to change it
}


@dataclass(frozen=True)
class Verdict:
    """What a scheduler decides on a report.

    Attributes:
        answer: for the reporting trial; "stop" has ended it on the board.
        acts: what happens to trials, as plain JSON. {"act": "stop", "trial", "why"} ends another trial;
            {"act": "exploit", "trial", "donor", "donor_step", "values", "why"} has a waiting trial, mostly the
            reporting one, go on from the donor's checkpoint of that step with these values (all searched names).
        action: what is worth a line in the table of decisions; None: the trial just goes on, waits, or is complete.
        why: the numbers that were compared; "" where none were.
        arrival: how many trials had come as far before; None where that played no part.
    """

    answer: Literal["go", "stop", "pause"]
    acts: tuple[dict[str, Any], ...] = ()
    action: Literal["stop", "promote"] | None = None
    why: str = ""
    arrival: int | None = None


@dataclass(frozen=True)
class _Saved:
    """What Ray's schedulers expect of a trial's last checkpoint."""

    checkpoint: Pointer
    metrics: Mapping[str, Any]


class Board:
    """A study's scheduler, asked by events.

    Every event that asks has a number, `call`: the random state is set from it and the study's seed. A trial is added
    once, and ends once: by a "stop" as its answer, by an act, or by `finish`.

    Attributes:
        pausing: trials wait after they were added, and whenever the answer is "pause", until `start`; which one is
            next, `choose` says. Else they run at once and never wait.
    """

    search_alg = None  # asked for by Ray's PBT

    def __init__(self, study: Study) -> None:
        self._study, self._inner = study, ray_scheduler(study)
        self._controller: Any = self  # it stands in for Ray's, but is none
        self._population = isinstance(study.scheduler, PBT | PB2) and study.budget.trials > 0
        waits = isinstance(study.scheduler, HyperBand | Promotion) and study.budget.trials > 0
        self.pausing = self._population or waits
        self._stubs: dict[str, Any] = {}  # Trial, of which Ray's schedulers and we touch what is not public
        self._live: dict[str, Any] = {}
        self._steps: dict[str, int] = {}  # of the live ones
        self._acts: list[dict[str, Any]] = []

    # --- what the ledger asks

    def add(self, trial: str, values: Mapping[str, Value], call: int) -> None:
        """A trial was proposed. `values` are the searched ones."""
        stub = Trial("cvtune", trial_id=trial, stub=True, config=self._inner.coordinates(values))
        stub.status = Trial.PENDING if self.pausing else Trial.RUNNING
        self._stubs[trial] = self._live[trial] = stub
        self._ask(call, (), self._inner.on_trial_add, self._controller, stub)

    def report(
        self, trial: str, epoch: Mapping[str, Any], call: int, on_record: Sequence[Mapping[str, Any]] = ()
    ) -> Verdict:
        """A trial has trained one more epoch.

        Args:
            epoch: `step`, and what `Study.score` and `Study.round` say of it, are looked at. Weights of max_epochs are
                not put to a population: to change them would be for nothing.
            on_record: in replay, the acts that this call had. Values of exploits are taken from there, because a
                Gaussian process fitted on another machine may differ in the last digit; who takes over whose weights
                is decided again all the same.
        """
        stub, over = self._live[trial], self._study.round(epoch) >= self._study.recipe.rounds
        result = self._keep(stub, epoch)
        if result is None or (over and self._population):
            return Verdict("go")
        answer = ANSWERS[self._ask(call, on_record, self._inner.on_trial_result, self._controller, stub, result)]
        reason = self._inner.reasons.get(trial, Reason(""))
        if over:
            answer = "stop" if answer == "pause" else answer  # there is nothing left to wait for
            length = "data.folds" if self._study.recipe.data.folds else "max_epochs"
            reason = Reason(f"{length} = {self._study.recipe.rounds}" if answer == "stop" else "")
        if answer == "pause":
            stub.status = Trial.PAUSED
        if answer == "stop":
            self._leave(stub, result)
        return Verdict(answer, tuple(self._acts), reason.action, reason.text, reason.arrival)

    def finish(
        self, trial: str, epoch: Mapping[str, Any] | None, call: int, on_record: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[dict[str, Any], ...]:
        """A trial is over. Returns the acts on others that follow; none if it had ended on the board already.

        Args:
            epoch: its last report; None if it failed or diverged.
            on_record: see `report`.
        """
        stub = self._live.get(trial)
        if stub is None:
            return ()
        result = None if epoch is None else self._keep(stub, epoch)
        self._ask(call, on_record, self._leave, stub, result)
        return tuple(self._acts)

    def choose(self, call: int) -> str | None:
        """The waiting trial that should run next; None if none should. Changes nothing."""
        if not self.pausing:
            return None
        reseed(self._study, call)
        chosen = self._inner.choose_trial_to_run(self._controller)
        return None if chosen is None else str(chosen.trial_id)

    def start(self, trial: str) -> None:
        """A waiting trial runs now."""
        self._live[trial].status = Trial.RUNNING

    def waits(self, trial: str) -> str:
        """The numbers for which a waiting trial has not gone on; "" where there are none."""
        return self._inner.waits(trial)

    def wants_more(self) -> bool:
        """Whether more trials must be proposed before any goes on.

        A population: until it has budget.trials; HyperBand: until the bracket that is open is full.
        """
        return self._inner.wants_more()

    def needed(self) -> set[tuple[str, int]]:
        """(trial, step) of every checkpoint that a later exploit may ask for, or that a live trial goes on from."""
        goes_on_from = {stub.checkpoint for stub in self._live.values() if stub.checkpoint is not None}
        return set(self._steps.items()) | goes_on_from | set(self._inner.pointers())

    # --- what Ray's schedulers ask of what they take for Ray's controller

    def get_trials(self) -> list[Trial]:
        return list(self._stubs.values())

    def get_live_trials(self) -> list[Trial]:
        return list(self._live.values())

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        trial.status = Trial.PAUSED

    def stop_trial(self, trial: Trial) -> None:
        why = self._inner.reasons[trial.trial_id].text
        self._acts.append({"act": "stop", "trial": trial.trial_id, "why": why})
        self._leave(trial, None)

    def take_over(self, trial: Trial, donor: Pointer, values: Mapping[str, Value], why: str) -> None:
        """A trial goes on from a donor's checkpoint (asked for by our own `Population`)."""
        act = {"act": "exploit", "trial": trial.trial_id, "donor": donor[0], "donor_step": donor[1]}
        self._acts.append({**act, "values": dict(values), "why": why})

    def _schedule_trial_save(self, trial: Trial, result: Mapping[str, Any] | None = None) -> Any:
        return trial.checkpoint  # that of the report it decides on

    # --- within

    def _keep(self, stub: Any, epoch: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a scheduler is told of a report, noted as the trial's newest; None if the objective is no number."""
        score = self._study.score(epoch)
        self._steps[stub.trial_id] = epoch["step"]
        result = {"step": epoch["step"], "epoch": self._study.round(epoch), self._study.objective: score}
        saved = _Saved((stub.trial_id, epoch["step"]), result)
        stub.run_metadata.checkpoint_manager._latest_checkpoint_result = saved
        return result if score is not None and math.isfinite(score) else None

    def _leave(self, stub: Trial, result: dict[str, Any] | None) -> None:
        stub.status = Trial.TERMINATED
        del self._live[stub.trial_id]
        self._steps.pop(stub.trial_id, None)
        if result is None:
            self._inner.on_trial_remove(self._controller, stub)
        else:
            self._inner.on_trial_complete(self._controller, stub, result)

    def _ask(self, call: int, on_record: Sequence[Mapping[str, Any]], hook: Callable[..., Any], *args: Any) -> Any:
        """Put one question: with the random state of its number, and nothing left over from the one before."""
        reseed(self._study, call)
        self._acts = []
        self._inner.reasons.clear()
        self._inner.known = {act["trial"]: act["values"] for act in on_record if act["act"] == "exploit"}
        return hook(*args)


def reseed(study: Study, number: int) -> None:
    """Set the global random state that Ray's schedulers use, from the study's seed and the number of the call."""
    seed = int(np.random.SeedSequence([study.recipe.seed, number]).generate_state(1, np.uint32)[0])
    random.seed(seed)
    np.random.seed(seed)
