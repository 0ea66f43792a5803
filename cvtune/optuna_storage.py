"""A study's search as a storage of Optuna: an SQLite file that Optuna and its dashboard open."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cvtune import history as histories
from cvtune import study
from cvtune.domains import Choice, IntUniform, LogUniform, PerChoice, Plain
from cvtune.evidence import RAN_OUT
from cvtune.history import FAILED, History, TrialRecord
from cvtune.noise import noise_floor
from cvtune.study import Study

FILE = "optuna.sqlite3"


def write_storage(folder: Path, file: Path) -> int:
    """Write the trials of a study's search to a new SQLite file; returns how many.

    Noise and control trials are among them (user attribute `role`); confirming ones repeat recipes and are left out. A
    trial is COMPLETE if it ran to its end, PRUNED if it was stopped, FAIL if it failed, else RUNNING. Its value is its
    best objective, as cvtune compares trials; its intermediate values are the objective at each step. A name that is
    searched over a domain per value of another one appears as `name (optim.name = 'sgd')`, since in Optuna a name has
    one distribution. User attributes hold the other metrics of the best report.
    """
    import optuna

    settings, history = study.read(folder / "study.json"), histories.load(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    direction = (
        optuna.study.StudyDirection.MAXIMIZE if settings.better == "max" else optuna.study.StudyDirection.MINIMIZE
    )
    made = optuna.create_study(study_name=settings.name, storage=storage, direction=direction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made.set_metric_names([settings.objective])
    for name, value in _about(settings, history).items():
        made.set_user_attr(name, value)
    records = history.of("noise", "control", "search")
    made.add_trials([_trial(settings, record) for record in records])
    storage.remove_session()
    storage.engine.dispose()
    return len(records)


def _about(settings: Study, history: History) -> dict[str, Any]:
    floor = noise_floor(settings, history)
    return {
        "objective": settings.objective,
        "data.source": settings.data.source,
        "max_epochs": settings.recipe.max_epochs,
        "noise_floor": floor.sd if floor else None,
        "complete": history.complete,
    }


def _trial(settings: Study, record: TrialRecord) -> Any:
    from optuna.trial import TrialState, create_trial

    reports = {e["step"]: score for e in record.epochs if (score := settings.score(e)) is not None}
    best = record.best(settings)
    state = _state(record, bool(reports))
    values, distributions = _axes(settings, record)
    made = create_trial(
        state=getattr(TrialState, state),
        value=settings.score(best) if best is not None and state in ("COMPLETE", "PRUNED") else None,
        params=values,
        distributions=distributions,
        intermediate_values=reports,
        user_attrs=_attributes(record, best["step"] if best else None),
    )
    made.datetime_start = datetime.fromtimestamp(record.proposed)  # without a zone, as Optuna's own
    if record.ended is not None:
        made.datetime_complete = datetime.fromtimestamp(record.ended)
    return made


def _state(record: TrialRecord, has_score: bool) -> str:
    if record.reason is None:
        return "RUNNING"
    if record.reason in FAILED or not has_score:
        return "FAIL"
    return "COMPLETE" if record.reason in RAN_OUT else "PRUNED"


def _axes(settings: Study, record: TrialRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trial's searched values and their distributions; none if it is a recipe outside of the space."""
    values = settings.space.restrict(record.recipe.flat())
    found: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for name, value in (values or {}).items():
        domain = settings.space.domain(name, values or {})
        assert domain is not None  # it has a value
        per = settings.space.domains[name]
        shown = f"{name} ({per.name} = {values[per.name]!r})" if isinstance(per, PerChoice) and values else name
        found[shown], distributions[shown] = value, _distribution(domain)
    return found, distributions


def _distribution(domain: Plain) -> Any:
    """Unlike the searchers' own, with the values of a choice and not their positions: a person will read them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(domain, IntUniform):
        return IntDistribution(domain.low, domain.high)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _attributes(record: TrialRecord, best: int | None) -> dict[str, Any]:
    """What Optuna has no column for. JSON knows no NaN: such numbers are left out."""
    told: Mapping[str, Any] = next((e for e in record.epochs if e["step"] == best), {})
    metrics = {k: v for k, v in told.items() if k.startswith(("train_", "clean_", "val_")) and _is_number(v)}
    seconds = sum(e["seconds"] or 0.0 for e in record.epochs)
    about = {"trial": record.trial, "role": record.role, "reason": record.reason, "message": record.message}
    return {**about, "best_step": best, "seconds": seconds, "exploits": len(record.exploits), **metrics}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
