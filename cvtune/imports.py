"""Runs that a team already has become a study that can be looked at and learned from, without training anything."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cvtune import __version__, mapping
from cvtune.durable import write_whole
from cvtune.epoch import METRICS, OBJECTIVES
from cvtune.errors import ConfigError, did_you_mean
from cvtune.history import REASONS
from cvtune.journal import Journal
from cvtune.mapping import Mapped
from cvtune.past import PastRun, read_table
from cvtune.recipe import FIELDS, Recipe, Value
from cvtune.results import write_tables
from cvtune.sections import MANIFESTS
from cvtune.space import Choice, IntUniform, LogUniform, Plain, Uniform, space
from cvtune.study import Study, make

OWN = ("seed", "max_epochs", "patience")  # values that differ between runs without being searched
FEW = 8  # whole numbers with at most so many values are choices
ENDS = {  # theirs -> our terminal reason; W&B's states first
    "finished": "completed",
    "crashed": "code_error",
    "failed": "code_error",
    "killed": "cancelled",
    "preempted": "cancelled",
    "preempting": "cancelled",
    "running": None,
    **{reason: reason for reason in REASONS},
}


@dataclass(frozen=True)
class Imported:
    """What became of the runs. `lines`: for a person, one sentence each."""

    folder: Path
    study: Study
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Usable:
    run: PastRun
    values: dict[str, Value]
    reports: list[dict[str, Any]]
    role: str = field(default="search")


def import_runs(
    source: str, maps: Sequence[str], storage: Path, name: str | None = None, objective: str | None = None
) -> Imported:
    """Make a study of the runs in a CSV or Parquet file, or in a W&B project ENTITY/PROJECT.

    A value of a recipe that differs between runs counts as searched, over the range that occurs. The largest group of
    runs with equal values are noise trials. A run without the objective, or with a value that no recipe may have, is
    left out and counted.

    Raises:
        ConfigError: the runs cannot be read, nothing tells the objective, no run can be used, all have the same
            values, or there is a study of this name.
    """
    given = mapping.parse(maps)
    runs = _read(source, given)
    mapped, unused = mapping.complete(given, runs)
    objective = _objective(objective, mapped)
    usable, dropped = _usable(runs, mapped, objective)
    if not usable:
        raise ConfigError(f"{source}: none of {len(runs)} runs can be used: {_counted(dropped)}.")
    study = _study(source, name, objective, usable)
    usable = [each for each in usable if study.space.domains.keys() <= each.values.keys()]
    usable = _with_roles(study, usable)
    study = _settled(study, usable)
    folder = storage / study.name
    if (folder / "study.json").exists():
        raise ConfigError(f"study {study.name!r} exists in {storage}. Give the imported one another --name.")
    told = {"source": source, "map": {ours: theirs.name for ours, theirs in mapped.items()}, "left_out": dict(dropped)}
    _write(folder, study, usable, told)
    return Imported(folder, study, tuple(_lines(source, study, runs, usable, dropped, mapped, unused)))


def _read(source: str, given: Mapped) -> list[PastRun]:
    if source.lower().endswith(MANIFESTS):
        trial = given.get(mapping.TRIAL)
        return read_table(Path(source).expanduser(), trial.name if trial else None)
    entity, slash, project = source.partition("/")
    if not (slash and entity and project) or "/" in project:
        raise ConfigError(f"{source!r}: give runs as a file (.csv, .parquet), or a project of W&B as ENTITY/PROJECT.")
    from cvtune.track.past_runs import past_runs

    runs = past_runs(entity, project)
    if not runs:
        raise ConfigError(f"{source}: the project has no runs.")
    return runs


def _objective(asked: str | None, mapped: Mapped) -> str:
    known = [name for name in OBJECTIVES if name in mapped]
    if asked is not None and asked not in known:
        raise ConfigError(f"--objective {asked!r}: nothing is mapped to it. {did_you_mean(asked, known or OBJECTIVES)}")
    if not known:
        raise ConfigError(
            "nothing says how good a run is. Map a metric, for example --map val_accuracy=THEIR_NAME. Valid: "
            f"{', '.join(OBJECTIVES)}."
        )
    return asked or known[0]


def _usable(runs: Sequence[PastRun], mapped: Mapped, objective: str) -> tuple[list[_Usable], Counter[str]]:
    found, dropped = [], Counter[str]()
    for run in runs:
        try:
            values = mapping.settings(run, mapped)
            Recipe().replace({name: value for name, value in values.items() if name != "patience"})
            reports = _numbered(mapping.reports(run, mapped, objective), values)
        except ConfigError as error:
            dropped[str(error)] += 1
            continue
        if reports:
            found.append(_Usable(run, values, reports))
        else:
            dropped[f"no {objective} ({mapped[objective].name})"] += 1
    return found, dropped


def _numbered(reports: list[dict[str, Any]], values: Mapping[str, Value]) -> list[dict[str, Any]]:
    """Reports with `step` and `epoch`: by their own epochs where these rise (from 0 or 1), else by their order."""
    epochs: list[Any] = [row.get("epoch") for row in reports]
    if len(reports) == 1 and epochs[0] is None:
        epochs = [values.get("max_epochs", 1)]
    rising = all(epoch is not None for epoch in epochs) and all(a < b for a, b in pairwise(epochs))
    first = 1 if rising and epochs and epochs[0] == 0 else 0
    numbers = [int(epoch or 0) + first for epoch in epochs] if rising else range(1, len(reports) + 1)
    return [{**row, "step": number, "epoch": number} for row, number in zip(reports, numbers, strict=True)]


def _study(source: str, name: str | None, objective: str, usable: Sequence[_Usable]) -> Study:
    columns: dict[str, list[Value]] = {}
    for each in usable:
        for value in each.values:
            columns.setdefault(value, []).append(each.values[value])
    distinct = {column: list(dict.fromkeys(values)) for column, values in columns.items() if column not in OWN}
    domains = {column: _domain(column, values) for column, values in distinct.items() if len(values) > 1}
    if not domains:
        raise ConfigError(f"{source}: all runs have the same values, so there is nothing to learn. Map what differs.")
    fixed = {column: values[0] for column, values in distinct.items() if len(values) == 1}
    longest = max(each.reports[-1]["epoch"] for each in usable)
    tree = {
        "name": name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem).strip("-.") or "imported",
        "data": {"source": source},
        "recipe": Recipe().replace({**fixed, "max_epochs": longest}),
        "space": space(domains, knobs_win=True),
        "scheduler": {"name": "fifo"},
        "objective": objective,
        "confirm": {"top": 0},
        "tracking": {"mode": "off"},
    }
    return make(tree)


def _domain(name: str, values: Sequence[Value]) -> Plain:
    """The domain over which a value was searched, as far as its values tell."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or (FIELDS[name].kind is int and len(values) <= FEW):
        return Choice(*sorted(values, key=lambda value: (str(type(value)), value)))
    low, high = min(numbers), max(numbers)
    if FIELDS[name].kind is int:
        return IntUniform(int(low), int(high))
    return LogUniform(low, high) if low > 0 and high >= 20 * low else Uniform(low, high)


def _recipe(study: Study, each: _Usable) -> Recipe:
    """The recipe of a run. One that ended by itself had its own length; any other would have gone on to the longest."""
    own = each.reports[-1]["epoch"] if _reason(each) == "completed" else study.recipe.max_epochs
    return study.recipe.replace({**each.values, "max_epochs": own})


def _reason(each: _Usable) -> str | None:
    return ENDS.get(each.run.state.lower(), "completed")


def _with_roles(study: Study, usable: Sequence[_Usable]) -> list[_Usable]:
    """The largest group of finished runs with the same searched values measures the noise."""
    groups: dict[str, list[_Usable]] = {}
    for each in usable:
        if _reason(each) == "completed":
            point = {name: each.values[name] for name in study.space.domains}
            groups.setdefault(repr(sorted(point.items())), []).append(each)
    largest = max(groups.values(), key=len, default=[])
    if len(largest) < 2 or len(largest) == len(usable):
        return list(usable)
    noise = [_Usable(each.run, each.values, each.reports, "noise") for each in largest]
    return [*noise, *(each for each in usable if not any(each is one for one in largest))]


def _settled(study: Study, usable: Sequence[_Usable]) -> Study:
    """The study with the recipe whose repeats measure the noise, and as many trials as there are."""
    noise = [each for each in usable if each.role == "noise"]
    base = {name: noise[0].values[name] for name in study.space.domains} if noise else {}
    tree = study.model_dump() | {"noise_seeds": len(noise), "recipe": study.recipe.replace(base)}
    return make(tree | {"budget": {"trials": len(usable) - len(noise)}})


def _write(folder: Path, study: Study, usable: Sequence[_Usable], told: Mapping[str, Any]) -> None:
    """`study.json`, a journal that says what happened as far as it is known, and tables."""
    provenance = {"created": time.time(), "command": sys.argv, "versions": {"cvtune": __version__}}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # as `lease.Lease` makes it
    (folder / "journal").mkdir(exist_ok=True)
    journal = Journal(folder / "journal" / "0001.jsonl")
    opened = {"term": 1, "saw_term": 0, "saw": 0, "host": platform.node(), "pid": os.getpid(), "resources": {}}
    journal.append("open", opened)
    numbers = Counter[str]()
    for index, each in enumerate(usable):
        _append(journal, study, index, numbers[each.role], each)
        numbers[each.role] += 1
    journal.append("close", {"why": "complete", "ended": f"imported from {told['source']}"})
    journal.close()
    imported = {**told, "runs": {f"{index:05d}": each.run.name for index, each in enumerate(usable)}}
    content = study.to_json({**provenance, "objective_left_open": False, "imported": imported})
    write_whole(folder / "study.json", content)
    write_tables(folder)


def _append(journal: Journal, study: Study, index: int, number: int, each: _Usable) -> None:
    recipe, reason, trial = _recipe(study, each), _reason(each), f"{index:05d}"
    at = {} if each.run.created is None else {"t": round(each.run.created, 3)}
    searched = study.space.restrict(recipe.flat()) if each.role == "search" else {}
    proposed = {"index": index, "number": number, "role": each.role, "label": "", "values": searched, "waiting": False}
    plain = recipe.model_dump(mode="json", exclude_defaults=True)
    journal.append("trial", {"trial": trial, **proposed, "recipe": plain, **at})
    journal.append("segment", {"trial": trial, "segment": 0, "attempt": 1, "step": 0, "node": "", "pid": 0, **at})
    for row in each.reports:
        ends = row is each.reports[-1] and reason is not None
        end: dict[str, Any] = {
            "answer": "go",
            "acts": [],
            "reason": reason if ends else None,
            "message": each.run.name if ends else "",
        }
        told = {"trial": trial, "attempt": 1, "segment": 0, **dict.fromkeys(METRICS), **row, **end}
        if at and row.get("seconds"):
            at = {"t": round(at["t"] + row["seconds"], 3)}
        journal.append("epoch", {**told, **at})


def _counted(dropped: Counter[str]) -> str:
    return "; ".join(f"{n} with {why.rstrip('.')}" for why, n in dropped.most_common(5)) or "they say nothing"


def _lines(
    source: str,
    study: Study,
    runs: Sequence[PastRun],
    usable: Sequence[_Usable],
    dropped: Counter[str],
    mapped: Mapped,
    unused: Sequence[str],
) -> list[str]:
    noise = study.noise_seeds
    lines = [f"{len(usable)} of {len(runs)} runs of {source} are the trials of study {study.name!r}."]
    lines += [f"Searched: {', '.join(study.space.domains)}; compared by {study.objective} ({study.better})."]
    if noise:
        lines.append(f"{noise} runs with equal values measure the noise.")
    else:
        lines.append("No two finished runs have equal values, so the noise of the seed is unknown.")
    if dropped:
        lines.append(f"Left out: {_counted(dropped)}.")
    partial = len(runs) - len(usable) - sum(dropped.values())
    if partial:
        lines.append(f"Left out: {partial} without a value of a searched name.")
    if missing := mapping.lacking(mapped):
        lines.append(f"Missing: {', '.join(missing)}.")
    if unused:
        shown = ", ".join(unused[:12]) + (f" and {len(unused) - 12} more" if len(unused) > 12 else "")
        lines.append(f"Not mapped: {shown}.")
    return lines
