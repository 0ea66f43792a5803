"""Noise floor: how far the seed alone moves the score. Differences below it say nothing about recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cvtune.history import History, TrialRecord
from cvtune.study import Study

FINISHED = ("completed", "stopped_patience")  # ended by the recipe's own rules, not by a scheduler or the budget


@dataclass(frozen=True)
class NoiseFloor:
    """Spread of the score over seeds of one recipe.

    Attributes:
        sd: standard deviation with n - 1 in the denominator, in units of the objective.
        seeds: finished trials that it is computed from, at least 2.
        mean: mean score of these trials.
    """

    sd: float
    seeds: int
    mean: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the true standard deviation (chi-square, scores taken as normal).

        Three seeds know it only within a factor of about twelve: 0.5 to 6.3 times `sd`.
        """
        from scipy.special import chdtri  # late: who only asks for `sd` need not wait for it

        # (n - 1) sd^2 / sigma^2 is chi-square; chdtri takes the upper tail.
        freedom = self.seeds - 1
        low, high = (self.sd * math.sqrt(freedom / float(chdtri(freedom, tail))) for tail in (0.025, 0.975))
        return low, high

    @property
    def spread(self) -> str:
        """What stands behind a score: " ± 0.0078", or nothing where the seeds show no difference."""
        return f" ± {self.sd:.4f}" if self.sd else ""

    def sentence(self) -> str:
        """The noise floor in words."""
        if not self.sd:
            return (
                f"All {self.seeds} seeds of the default recipe score {self.mean:.4g}: what the seed changes is less "
                "than these validation images can show."
            )
        low, high = self.interval
        return (
            f"The seed alone moves the score by {self.sd:.2g} (standard deviation over {self.seeds} seeds of the "
            f"default recipe, which fixes it within {low:.2g} and {high:.2g} with 95 % confidence)."
        )


def score(study: Study, record: TrialRecord) -> float | None:
    """The score of a trial: the best finite objective of its epochs, as `History.ranked` ranks trials.

    It is the best epoch and not the last, everywhere in the search: for the noise floor, for controls and for ranks.
    Only the confirmation, which compares recipes and must not profit from luck, takes the last epoch. Epochs above a
    limit of the study do not count. With folds it is the last mean over them. None where no epoch counts.
    """
    sound = [e for e in record.epochs if not study.over_limits(e) and _is_finite(study.score(e))]
    best = record.best(study, sound)
    return None if best is None else study.score(best)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def noise_floor(study: Study, history: History) -> NoiseFloor | None:
    """The noise floor from the finished trials with the role "noise"; None with fewer than 2 of them."""
    finished = [record for record in history.of("noise") if record.reason in FINISHED]
    scores = [value for record in finished if (value := score(study, record)) is not None]
    if len(scores) < 2:
        return None
    sd = float(np.std(scores, ddof=1)) if len(set(scores)) > 1 else 0.0  # equal scores differ by a rounding else
    return NoiseFloor(sd, len(scores), float(np.mean(scores)))
