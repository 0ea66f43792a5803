"""Average precision: how well scores rank what is there above what is not. Loads no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def average_precision(scores: npt.NDArray[Any], there: npt.NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Area under the steps of precision over recall, as in scikit-learn and torchmetrics; equal scores are one step.

    Args:
        scores: (N,), higher is more certain.
        there: bool (N,), the truth.
        weights: (N, R), how often each image counts in each of R rounds; None: once, in one round.

    Returns:
        float64 (R,) in 0..1; NaN in rounds where nothing is there.
    """
    weights = np.ones((len(scores), 1)) if weights is None else weights
    if not len(scores):
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # of each run of equal scores
    weights = weights[order]
    told = np.cumsum(weights, axis=0)[ends]
    right = np.cumsum(weights * there[order][:, None], axis=0)[ends]
    gained = np.diff(right, axis=0, prepend=0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray((gained * right / np.maximum(told, 1e-12)).sum(0) / right[-1])


def average_precisions(chance: npt.NDArray[Any], tags: npt.NDArray[Any], weights: Floats | None = None) -> Floats:
    """That of each class over the images of which it is known, (K, R).

    Args:
        chance: (N, K), higher is more certain.
        tags: (N, K), from 0.5 on a class is there; NaN where it is not known.
        weights: see `average_precision`.
    """
    rows = []
    for k in range(chance.shape[1]):
        known = ~np.isnan(tags[:, k])
        of_known = None if weights is None else weights[known]
        rows.append(average_precision(chance[known, k], tags[known, k] >= 0.5, of_known))
    return np.stack(rows)
