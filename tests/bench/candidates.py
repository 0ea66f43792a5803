"""Ways to search that cvtune does not have, as sides of `replay.py`: to see whether they would be worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cvtune.evidence import Seen, final_scores
from cvtune.searchers import TPE
from cvtune.study import Study
from cvtune.suggest import Parzen

if TYPE_CHECKING:
    import optuna


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
