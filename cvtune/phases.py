"""What is proposed next: noise trials, control trials, the search itself, and when that is over the confirmation."""

from __future__ import annotations

from collections import deque

import numpy as np

from cvtune import confirm
from cvtune.confirm import Planned
from cvtune.history import TrialRecord
from cvtune.ledger import Ledger
from cvtune.noise import FINISHED, noise_floor
from cvtune.schedulers import ASHA
from cvtune.suggest import expected_improvement


class Phases:
    """Proposes trials until there is nothing left to do.

    Attributes:
        search_over: why the search proposes no more, in words; None while it goes on.
        over: the same, once the confirmation has proposed all of its trials as well.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._study = ledger, ledger.study
        self.search_over: str | None = None
        self.over: str | None = None
        self._planned: deque[Planned] | None = None
        self._modelled = 0  # finished trials when the expected improvement was last looked at

    def next(self, slots: int, most: int | None) -> TrialRecord | None:
        """Propose the next trial if one is wanted now.

        Args:
            slots: trials that can run at once.
            most: `resources.max_concurrent`.
        """
        ledger, study, history = self._ledger, self._study, self._ledger.history
        if self.over is not None or (not ledger.board.pausing and most is not None and ledger.running >= most):
            return None
        if study.budget.trials and len(history.of("noise")) < study.noise_seeds:
            return ledger.propose("noise")
        if len(history.of("control")) < self._controls():
            draw = np.random.SeedSequence([study.recipe.seed, len(history.of("control")), 2])  # no searcher's stream
            return ledger.propose("control", study.space.sample(np.random.default_rng(draw)))
        self.search_over = self.search_over or self._why_over()
        ledger.search_over = self.search_over is not None
        if self.search_over is None:
            return self._search(slots)
        return self._confirm()

    def _search(self, slots: int) -> TrialRecord | None:
        ledger = self._ledger
        waits = ledger.board.pausing and not ledger.board.wants_more()
        if waits and (ledger.running >= slots or ledger.choose() is not None):
            return None  # what was proposed goes on first
        values = ledger.suggest()
        if values is not None:
            return ledger.propose("search", values)
        self.search_over = f"searcher.name = {self._study.searcher.name}: every point was proposed"
        ledger.search_over = True
        return self._confirm()

    def _confirm(self) -> TrialRecord | None:
        """Only when every trial of the search has ended is it known what to confirm."""
        ledger = self._ledger
        if self._planned is None:
            if any(record.role != "confirm" for record in ledger.live):
                return None
            self._planned = deque(confirm.plan(self._study, ledger.history))
        if self._planned:
            return ledger.propose("confirm", planned=self._planned.popleft())
        self.over = self.search_over
        return None

    def _controls(self) -> int:
        scheduler = self._study.scheduler
        return min(scheduler.controls, self._study.budget.trials) if isinstance(scheduler, ASHA) else 0

    def _why_over(self) -> str | None:
        """Why no more trial is searched with; None while the search goes on."""
        study, history = self._study, self._ledger.history
        if len(history.of("search", "control")) >= study.budget.trials:
            return f"budget.trials = {study.budget.trials}"
        return self._ledger.spent() or (self._below_noise() if study.budget.until_noise else None)

    def _below_noise(self) -> str | None:
        finished = sum(record.reason in FINISHED for record in self._ledger.history.of("search", "control"))
        floor = noise_floor(self._study, self._ledger.history)
        if floor is None or finished < 1.1 * self._modelled + 1:  # fitting takes seconds at hundreds of trials
            return None
        self._modelled = finished
        expected = expected_improvement(self._study, self._ledger.history, self._study.recipe.seed)
        if not expected < floor.sd:  # also while too few trials have finished to say
            return None
        return f"budget.until_noise: expected improvement {expected:.2g} is below the noise floor {floor.sd:.2g}"
