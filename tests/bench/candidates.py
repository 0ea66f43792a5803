"""Ways to search that cvtune does not have, as sides of `replay.py`: to see whether they would be worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from cvtune.board import Board
from cvtune.evidence import Seen, final_scores
from cvtune.explained import Explained
from cvtune.searchers import TPE
from cvtune.study import Study
from cvtune.suggest import Parzen

if TYPE_CHECKING:
    import optuna


class Promotion(Explained, FIFOScheduler):
    """ASHA as its authors wrote it (Li et al. 2020, MLSys, algorithm 2), for scores of which more is better.

    A trial waits at each rung and goes on once it is among the best 1/factor of all that have come there; a free
    place first takes the one that waits at the highest rung and may go on, else a new trial. Ray's ASHA never lets a
    trial wait, so that those who come first pass whatever their score, and whoever was stopped is gone for good.
    """

    def __init__(self, study: Study, factor: int = 3) -> None:
        super().__init__()
        self._objective, self._factor = study.objective, factor
        self._rungs: dict[int, dict[Trial, float]] = {}  # epoch -> trial -> score
        epoch = 1
        while epoch < study.recipe.rounds:
            self._rungs[epoch] = {}
            epoch *= factor
        self._came: dict[Trial, int] = {}  # the highest rung of each trial; 0: it has not begun

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._came[trial] = 0

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        epoch = result["epoch"]
        if epoch not in self._rungs:
            return str(self.CONTINUE)
        self._rungs[epoch][trial], self._came[trial] = result[self._objective], epoch
        return str(self.CONTINUE if trial in self._best(epoch) else self.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        for epoch in sorted(self._rungs, reverse=True):
            for trial in self._best(epoch):
                if trial.status == Trial.PAUSED and self._came[trial] == epoch:
                    return trial
        return next((trial for trial in self._came if trial.status == Trial.PENDING), None)

    def _best(self, epoch: int) -> list[Trial]:
        rung = self._rungs[epoch]
        return sorted(rung, key=lambda trial: -rung[trial])[: len(rung) // self._factor]


def promotion(study: Study) -> Board:
    """A board that asks `Promotion`."""
    board = Board(study)
    board._inner, board.pausing = Promotion(study), True
    return board


class Estimated(Parzen):
    """TPE that is told where a stopped trial would probably have ended, as our Gaussian process is.

    Values are modelled one by one, and running trials are left out.
    """

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)

    def _told(self, seen: Sequence[Seen]) -> list[optuna.trial.FrozenTrial]:
        scores = final_scores(seen, self._sign)
        return [
            self._trial("COMPLETE", self._params(each.values), score)
            for each, score in zip(seen, scores, strict=True)
            if score is not None and each.outcome != "running"
        ]


def estimated(study: Study) -> Estimated:
    """The searcher, learning from the sixth point on."""
    return Estimated(study, TPE(startup=5))
