"""Training: the overfitting gap over both axes, what early stopping saved and may have cost, what all of it took."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.analysis.design import Design, curves_of
from cvtune.analysis.findings import Costs, Floats, Gap, Interval, Rungs, Unsaid
from cvtune.analysis.tables import Tables
from cvtune.controls import rungs

GAPS = (("clean_accuracy", "val_accuracy"), ("val_loss", "clean_loss"), ("val_loss", "train_loss"))
FEWEST = 8  # trials for the slopes of the gap
ENDED = ("completed", "stopped_scheduler", "stopped_patience")


def gap_of(tables: Tables, design: Design, axes: tuple[int, int]) -> Gap:
    """Clean training images minus validation images at each trial's last epoch, and its slopes over both axes.

    The slopes are those of least squares with the logarithm of the epochs beside both axes.

    Raises:
        Unsaid: the columns are not there, or there are too few trials.
    """
    from scipy.stats import t as student

    last = {str(name): row for row, name in enumerate(tables.epochs["trial"])}  # rows of a trial are in order
    rows = [last[name] for name in design.trials]
    for more, less in GAPS:
        if more in tables.epochs and less in tables.epochs:
            gap = np.asarray(tables.epochs[more], float)[rows] - np.asarray(tables.epochs[less], float)[rows]
            if np.isfinite(gap).sum() >= FEWEST:
                break
    else:
        raise Unsaid(f"fewer than {FEWEST} trials have both a training score and a validation score")
    known = np.isfinite(gap)
    place, epochs = design.place[known][:, list(axes)], design.epochs[known]
    features = np.column_stack([np.ones(len(place)), place, np.log(epochs)])
    gap = gap[known]
    weights, *_ = np.linalg.lstsq(features, gap, rcond=None)
    freedom = max(1, len(gap) - np.linalg.matrix_rank(features))
    variance = float(((gap - features @ weights) ** 2).sum()) / freedom
    error = np.sqrt(variance * np.diag(np.linalg.pinv(features.T @ features)))
    half = float(student.ppf(0.975, freedom)) * error
    over = [Interval(float(weights[k]), float(weights[k] - half[k]), float(weights[k] + half[k])) for k in (1, 2)]
    x, y = (_positions(tables, design.names[i], np.array(design.trials)[known]) for i in axes)
    return Gap(f"{more} - {less}", x, y, gap, epochs, *over)


def _positions(tables: Tables, name: str, trials: npt.NDArray[Any]) -> Floats:
    """The values of a searched name of some trials."""
    values = dict(zip(tables.trials["trial"], tables.column(name), strict=True))
    return np.array([values[trial] for trial in trials], float)


def rungs_of(tables: Tables) -> Rungs:
    """What the score at each rung said of the final one, and the epochs saved.

    Raises:
        Unsaid: no trial of the search has ended, or trials go over folds.
    """
    if tables.study.recipe.data.folds:
        raise Unsaid("trials go over folds, and the mean over the first ones is no early score of a longer training")
    study, role = tables.study, tables.column("role")
    ended = np.array([reason in ENDED for reason in tables.column("reason")])
    counted = ended & np.isin(np.where(role == None, "search", role), ("search", "control"))  # noqa: E711
    if not counted.any():
        raise Unsaid("no trial of the search has ended")
    curves = curves_of(tables)
    names = [str(name) for name in tables.trials["trial"][counted] if str(name) in curves]
    sign, most = (1.0 if study.better == "max" else -1.0), study.recipe.max_epochs
    best = {name: np.maximum.accumulate(sign * curves[name][1]) for name in names}
    whole = [name for name in names if len(best[name]) == most]
    epochs = np.array(rungs(study), np.int64)
    return Rungs(
        epochs=epochs,
        correlation=np.array([_ranked([best[n][e - 1] for n in whole], [best[n][-1] for n in whole]) for e in epochs]),
        reached=np.array([sum(len(best[name]) >= e for name in names) for e in epochs], np.int64),
        trained=sum(len(best[name]) for name in names),
        whole=len(names) * most,
        controls=tables.controls,
    )


def costs_of(tables: Tables) -> Costs:
    """Hours of device time by role.

    Raises:
        Unsaid: the reports hold no times.
    """
    if "seconds" not in tables.epochs:
        raise Unsaid("the reports hold no times")
    role = dict(zip(tables.trials["trial"], tables.column("role"), strict=True))
    gpu, cpu = tables.study.resources.gpu, tables.study.resources.cpu
    if gpu == "auto":
        gpu = float(tables.provenance["gpu_of_trial"])
    on_gpu = gpu is None and any(node.get("GPU") for node in tables.provenance.get("nodes", ()))
    devices = gpu or (1.0 if on_gpu else cpu)
    hours: dict[str, float] = {}
    for name, seconds in zip(tables.epochs["trial"], np.asarray(tables.epochs["seconds"], float), strict=True):
        kind = role.get(name) or "search"
        hours[kind] = hours.get(kind, 0.0) + float(np.nan_to_num(seconds)) * devices / 3600
    return Costs("GPU-hours" if gpu or on_gpu else "CPU-hours", hours, len(tables.epochs["trial"]))


def _ranked(a: list[Floats], b: list[Floats]) -> float:
    """Spearman's rank correlation; NaN below 4 trials or where all are alike."""
    from scipy.stats import spearmanr

    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)
