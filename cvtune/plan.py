"""`cvtune plan`: what a study will take, from a few short trials and a game on paper; and later what it really took."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cvtune.durable import read_json, write_whole
from cvtune.engine import run_study
from cvtune.errors import ConfigError, CvtuneError
from cvtune.forecast import Cost, Forecast, broken, fitting_trials, forecast
from cvtune.history import History, TrialRecord
from cvtune.study import Study, make

FORMAT = 1
FILE = "plan.json"  # in the study's folder
TRIALS, AT_ONCE = 4, 2  # of the calibration: two begin in new processes, two in processes that are there
EPOCHS, FOLD_EPOCHS = 3, 2  # of each of them; where there are folds, of each fold
CLOSE = 0.3  # how far a plan may be off before it is said to be wrong


@dataclass(frozen=True)
class Plan:
    """What is expected of a study. `resources`: of one trial; `slots`: trials at once; `definition`: of what."""

    cost: Cost
    forecast: Forecast
    slots: int
    resources: dict[str, float]
    definition: dict[str, Any] = field(repr=False)

    @property
    def per_second(self) -> float:
        """GPUs of a trial, CPU cores where it has none: what `budget.gpu_hours` counts."""
        return self.resources.get("GPU", 0) or self.resources["CPU"]

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.resources.get("GPU") else "CPU-hours"

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of a title and a sentence."""
        cost, found = self.cost, self.forecast
        hours = found.device_s * self.per_second / 3600
        saved = found.full - found.epochs
        measured = f"{cost.epoch + cost.between:.2g} s per epoch, {cost.trial:.2g} s to begin a trial, "
        measured += f"{cost.process:.2g} s to begin a process ({TRIALS} short trials)"
        trains = f"{found.trials} trials, {found.epochs} of {found.full} epochs: stopping early should save "
        trains += f"{saved} ({saved / found.full:.0%})"
        takes = f"{hours:.2g} {self.unit}; {_span(found.wall_s)} with {self.slots} trials at once, of which the search "
        takes += _span(found.search_s)
        keeps = f"{found.bytes / 1e6:.3g} MB in the study's folder, most of it checkpoints"
        return [("measured", measured), ("trains", trains), ("takes", takes), ("keeps", keeps)]


def plan(study: Study, storage: Path, cache: Path | None, roots: tuple[str, ...], slots: int | None) -> Plan:
    """Measure short trials of `study` where it would run, and play it through.

    Args:
        slots: trials at once to plan for; None: as many as fit where the short ones ran.

    Raises:
        CvtuneError: no short trial got through, or see `run_study`.
        ConfigError: the study has nothing to search.
    """
    if not study.budget.trials:
        raise ConfigError("budget.trials = 0: there is no search to plan. Set the trials that you want.")
    with tempfile.TemporaryDirectory(prefix="cvtune-plan-") as folder:
        done = run_study(_short(study), Path(folder), cache, "never", roots)
        if done.signal is not None:
            raise CvtuneError("interrupted before the short trials were through; nothing was planned.")
        settled = study.settled(done.study.objective)
        cost = _measured(done.history, done.folder)
    opened = done.history.terms[0]
    at_once = slots or min(opened["fits"], study.resources.max_concurrent or opened["fits"])
    made = Plan(cost, forecast(settled, cost, at_once), at_once, dict(opened["resources"]), _about(settled))
    write_whole(
        storage / study.name / FILE, json.dumps({"format": FORMAT, "made": time.time(), **asdict(made)}, indent=2)
    )
    return made


def check_budget(study: Study, made: Plan) -> None:
    """Refuse a study that its budget ends before all trials.

    Raises:
        ConfigError: says what is needed and what would fit.
    """
    wrong = broken(study, made.forecast, made.per_second)
    if not wrong:
        return
    fits = fitting_trials(study, made.cost, made.slots, made.per_second)
    needs = "; ".join(
        f"budget.{name} = {most:g}, and the search needs {need:.3g}" for name, (most, need) in wrong.items()
    )
    remedy = f"--set budget.trials={fits} fits" if fits else "not a single trial fits: lower max_epochs"
    raise ConfigError(
        f"{needs}: it would end before its {study.budget.trials} trials are through. {remedy}; or raise the budget."
    )


def compared(study: Study, folder: Path, history: History) -> str | None:
    """What a complete study took beside what was planned, in words; None without a plan of this very study."""
    raw = read_json(folder / FILE)
    if raw is None or not history.complete or raw.get("format") != FORMAT or raw["definition"] != _about(study):
        return None
    per_second = raw["resources"].get("GPU", 0) or raw["resources"]["CPU"]
    records = list(history.trials.values())
    real = {
        "epochs": float(sum(len(r.epochs) for r in records)),
        "hours": sum(e["seconds"] or 0.0 for r in records for e in r.epochs) * per_second / 3600,
        "wall_s": sum(term["closed"] - term["t"] for term in history.terms if term["closed"]),
    }
    told = raw["forecast"]
    planned = {"epochs": told["epochs"], "hours": told["device_s"] * per_second / 3600, "wall_s": told["wall_s"]}
    write_whole(folder / FILE, json.dumps({**raw, "real": real}, indent=2))
    off = {name: real[name] / planned[name] - 1 if planned[name] else 0.0 for name in real}
    unit = "GPU-hours" if raw["resources"].get("GPU") else "CPU-hours"
    verdict = "" if all(abs(value) <= CLOSE for value in off.values()) else " The plan was off by more than 30 %."
    return (
        f"planned {planned['epochs']:g} epochs, {planned['hours']:.2g} {unit}, {_span(planned['wall_s'])}; "
        f"took {real['epochs']:g} ({off['epochs']:+.0%}), {real['hours']:.2g} ({off['hours']:+.0%}), "
        f"{_span(real['wall_s'])} ({off['wall_s']:+.0%}).{verdict}"
    )


def _about(study: Study) -> dict[str, Any]:
    """What a plan holds for: the definition and how many trials."""
    return {**study.definition(), "trials": study.budget.trials}


def _short(study: Study) -> Study:
    """A few short trials at random points of the space, none of which is stopped."""
    few = min(FOLD_EPOCHS if study.recipe.data.folds else EPOCHS, study.recipe.max_epochs)
    short: dict[str, Any] = {
        "max_epochs": few,
        "changes": (),
        "optim.warmup_epochs": 0,
        "model.freeze_epochs": 0,
        "patience": None,
    }
    most = min(AT_ONCE, study.resources.max_concurrent or AT_ONCE)
    tree: dict[str, Any] = study.model_dump() | {
        "name": "plan",
        "recipe": study.recipe.replace(short),
        "space": study.space.without({name: value for name, value in short.items() if name in study.space.domains}),
        "scheduler": {"name": "fifo"},
        "searcher": {"name": "random"},
        "budget": {"trials": TRIALS},
        "confirm": {"top": 0},
        "tracking": {"mode": "off", "strip": study.tracking.strip},
        "noise_seeds": 0,
        "candidates": {},
        "points": (),
        "prior": (),
    }
    return make(tree | {"resources": {**tree["resources"], "max_concurrent": most}})


def _measured(history: History, folder: Path) -> Cost:
    trained = [record for record in history.trials.values() if record.epochs and record.ended]
    if not trained:
        failed = next((f"{r.reason}: {r.message}" for r in history.trials.values() if r.reason), "none began")
        raise CvtuneError(f"no short trial got through ({failed}), so there is nothing to reckon with.")
    seconds = [e["seconds"] for record in trained for e in record.epochs]
    pairs = [(a, b) for r in trained for a, b in zip(r.epochs, r.epochs[1:], strict=False) if b["epoch"] > a["epoch"]]
    gaps = [b["t"] - a["t"] - b["seconds"] for a, b in pairs]  # within a fold: a new one begins like a trial
    process, trial = _beginnings(trained, history.terms[0]["t"])
    saved = [sum(f.stat().st_size for f in file.parent.iterdir()) for file in folder.rglob("state.safetensors")]
    everything = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Cost(
        epoch=statistics.fmean(seconds),
        between=max(0.0, _mean(gaps)),
        trial=trial,
        process=process,
        checkpoint=max(saved, default=0),
        report=max(0, everything - sum(saved)) // len(seconds),
    )


def _beginnings(trained: list[TrialRecord], opened: float) -> tuple[float, float]:
    """Seconds until a new process, and one that is there, have begun a trial: its first report less its epoch.

    The trials that are proposed first begin in new processes, each later one when an earlier trial has ended.
    """
    firsts = [record.epochs[0]["t"] - record.epochs[0]["seconds"] for record in trained]
    ends = sorted(record.ended or 0.0 for record in trained)
    new = min(AT_ONCE, len(trained))
    process = _mean(first - opened for first in firsts[:new])
    again = [first - end for first, end in zip(sorted(firsts[new:]), ends, strict=False)]
    return max(0.0, process), max(0.0, _mean(again)) if again else max(0.0, process)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.fmean(found) if found else 0.0


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
