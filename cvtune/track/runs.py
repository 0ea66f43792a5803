"""What W&B is told of a study's trials, as plain values: runs, rows, summaries. Nothing here knows W&B's client."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cvtune import health, strips
from cvtune.confirm import DEFAULT
from cvtune.epoch import METRICS
from cvtune.history import FAILED, History, TrialRecord
from cvtune.noise import FINISHED
from cvtune.recipe import Recipe, Value
from cvtune.schedulers import ASHA, PB2, PBT, HyperBand, Median, Promotion
from cvtune.study import Study

LARGE = 500  # trials; of a study that may have more, only those past the first rung get a run of their own
EFFECTIVE = "effective/"  # begins the name of a metric that is a value of the recipe, where these change in training
STUDY = "study"  # key and job type of the run that stands for the study itself
BAND, BANDS = "augment_band", 4  # key of the config, see `band`
MESSAGE = 500  # characters of an error's text

State = Literal["finished", "failed", "preempted"]
SHORT = {"augment.strength": "aug", "regularize.strength": "reg", "optim.lr": "lr"}
NAME = 100  # characters


@dataclass(frozen=True)
class Run:
    """One run as it begins. The same trial of the same study always has the same `id`."""

    key: str  # the trial, or STUDY
    id: str
    name: str
    group: str
    job_type: str  # trial, confirm or study
    tags: tuple[str, ...]
    config: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What one report adds to a run's history. `strip`: a picture of single images, if there is one that may leave."""

    step: int
    values: dict[str, Any]
    strip: Path | None = None


def run_id(study: Study, provenance: Mapping[str, Any], key: str) -> str:
    """16 hex digits that depend on the study, when it was begun, and the trial: a retry or a resume is the same run."""
    text = "\n".join((study.name, repr(provenance.get("created", "")), key))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tags(study: Study, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Scheduler, data fingerprint and git commit, the latter two shortened."""
    data, commit = provenance.get("data_fingerprint"), provenance.get("git_commit")
    found = [study.scheduler.name, data and f"data:{str(data)[:12]}", commit and f"git:{str(commit)[:10]}"]
    return tuple(tag for tag in found if tag)


def of_trial(study: Study, provenance: Mapping[str, Any], record: TrialRecord) -> Run:
    """The run of one trial. Its config is the recipe in its sections, so that W&B shows our dotted names."""
    label = record.label or (DEFAULT if record.role == "noise" else "")
    about: dict[str, Any] = {"study": study.name, "trial": record.trial, "role": record.role, "label": label}
    about |= {BAND: band(record.recipe.augment.strength)}
    return Run(
        key=record.trial,
        id=run_id(study, provenance, record.trial),
        name=name(record),
        group=study.name,
        job_type="confirm" if record.role == "confirm" else "trial",
        tags=(*tags(study, provenance), record.role),
        config=about | record.recipe.model_dump(mode="json"),
    )


def band(strength: float) -> str:
    """The quarter of [0, 1] that a strength lies in, such as "0.25 to 0.5": W&B groups runs by equal values alone."""
    low = min(int(strength * BANDS), BANDS - 1) / BANDS
    return f"{low:g} to {low + 1 / BANDS:g}"


def name(record: TrialRecord) -> str:
    """A name to read, such as "00012 aug 0.64 reg 0.27 lr 0.001", or "00035 confirm 00012"."""
    if record.role in ("confirm", "noise"):
        return " ".join(filter(None, (record.trial, record.role, record.label)))
    values = [f"{SHORT.get(key, key.rpartition('.')[2])} {_brief(value)}" for key, value in record.values.items()]
    return " ".join([record.trial, *(["control"] if record.role == "control" else []), *values])[:NAME]


def rows(study: Study, record: TrialRecord, folder: Path, after: int = 0, classes: Sequence[str] = ()) -> Iterator[Row]:
    """The reports of a trial past step `after`, each with all its metrics; those that are no number are left out.

    Strips are looked for in the study's `folder`. `classes` are the names as they are shown, see `shown`.
    """
    names = changing(study, record.recipe)
    pictures = {} if study.tracking.private else strips.of_trial(folder / "trials" / record.trial)
    for event in record.epochs:
        if event["step"] <= after:
            continue
        told = (single(metric, event.get(metric), classes) for metric in METRICS if metric != "step")
        values = {key: value for pairs in told for key, value in pairs}
        values |= {"attempt": event["attempt"], "segment": event["segment"]}
        now = record.recipe_at(event["step"]).at(event["epoch"] - 1).flat() if names else {}
        values |= {f"{EFFECTIVE}{n}": now[n] for n in names if now[n] is not None}
        yield Row(event["step"], values, pictures.get(event["step"]))


def single(metric: str, value: Any, classes: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """A metric as it is sent: of one with a value per class each class ("val_recall/cat"), and no None.

    A class is named by its number where `classes` does not name it.
    """
    if isinstance(value, list):
        named = [*classes, *map(str, range(len(classes), len(value)))]
        yield from ((f"{metric}/{name}", one) for name, one in zip(named, value, strict=False) if one is not None)
    elif value is not None:
        yield metric, value


def shown(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as parts of W&B's keys, in which dots and slashes divide: these and other signs become "_".

    Those that would then be alike get their number.
    """
    safe = [re.sub(r"[^\w -]", "_", name) for name in classes]
    return tuple(f"{name} {k}" if safe.count(name) > 1 else name for k, name in enumerate(safe))


def changing(study: Study, recipe: Recipe) -> tuple[str, ...]:
    """The values of a recipe that may change while it trains: what a population searches, and `changes`."""
    searched = study.space.domains if isinstance(study.scheduler, PBT | PB2) else ()
    return tuple(dict.fromkeys([*searched, *(key for _, values in recipe.changes for key in values)]))


def summary(study: Study, record: TrialRecord, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Why a trial ended, its cost, its scores, what was wrong with it; named like the columns of the table `trials`."""
    best, wrong = record.best(study), health.of_trial(record)
    found: dict[str, Any] = {
        "reason": record.reason,
        "message": record.message[:MESSAGE],
        "epochs": len(record.epochs),
        "attempts": record.attempt,
        "exploits": len(record.exploits),
        "total_seconds": float(sum(e["seconds"] or 0.0 for e in record.epochs)),
        "best": best and study.score(best),
        "best_step": best and best["step"],
        "last": record.last(study),
        "verdicts": health.names_of(wrong),
        "evidence": health.told(wrong)[:MESSAGE],
    }
    if best:  # W&B keeps the best of the reports that it saw since a run was resumed
        found[study.objective] = {study.better: study.score(best)}
    scores = [(key, value) for key, value in (record.test or {}).items() if key.startswith("test_")]
    tested = dict(pair for scored in scores for pair in single(*scored, classes))
    return {k: v for k, v in (found | tested).items() if v is not None and not _is_nan(v)}


def state(record: TrialRecord) -> State:
    """How the run of a trial ends. One that ASHA stopped has finished; one that is not over was preempted."""
    if record.reason is None:
        return "preempted"
    return "failed" if record.reason in FAILED else "finished"


def is_settled(study: Study, record: TrialRecord) -> bool:
    """Whether nothing more is expected of a trial: it is over, and tested if the confirmation will test it."""
    tested_later = record.role in ("noise", "confirm") and bool(study.confirm.top or study.candidates)
    return record.reason is not None and not (tested_later and record.reason in FINISHED and record.test is None)


def is_large(study: Study, history: History) -> bool:
    """Whether the study has, or by its budget may come to, more than `LARGE` trials."""
    planned = min(study.budget.trials, study.budget.epochs or study.budget.trials)
    return max(planned, len(history.trials)) > LARGE


def first_rung(study: Study) -> int:
    """Reports that every trial gets before the scheduler may stop it; 0 for one that stops none."""
    each = study.recipe.max_epochs if study.recipe.data.folds else 1
    if isinstance(study.scheduler, ASHA | Median | Promotion):
        return each * study.scheduler.grace_epochs
    return each if isinstance(study.scheduler, HyperBand) else 0


def has_run(study: Study, record: TrialRecord, large: bool) -> bool:
    """Whether a trial gets a run of its own: always, but in a large study only past the first rung.

    All trials, these among them, are rows of the table on the study's run. Noise and confirming trials have a run.
    """
    return not large or record.role in ("noise", "confirm") or record.steps > first_rung(study)


def _brief(value: Value) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
