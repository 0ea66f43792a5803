"""Content: everything a report shows of one study, as frozen values, gathered from its tables and its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtune import strips
from cvtune.analysis.findings import Findings
from cvtune.analysis.tables import Tables
from cvtune.durable import read_json
from cvtune.epoch import METRICS
from cvtune.report import rows as rows_of
from cvtune.report.answer import Answer, answer, winner_of
from cvtune.report.classes import ClassReport, of_winner
from cvtune.report.rows import Rows, ranked
from cvtune.report.wrong import Wrong
from cvtune.report.wrong import of_tables as wrong_of

STRIPS = 3  # of one trial: first, middle, last
EXCERPT = 400  # reports of one shown curve at most


@dataclass(frozen=True)
class Example:
    """One trial of three: its curve on the validation and on clean training images, and some of its strips."""

    what: str  # best, median or worst
    trial: str
    told: str
    steps: tuple[int, ...]
    val: tuple[float | None, ...]
    clean: tuple[float | None, ...]
    metrics: tuple[str, str]
    strips: tuple[tuple[int, Path], ...]  # step, picture


@dataclass(frozen=True)
class Content:
    """What a report shows. `recipe`: the best one, whole, as JSON; `schedule`: what a population left, see `schedule`.

    Attributes:
        facts: what the study was, name and value.
        provenance: where it comes from, name and value.
        made: seconds since 1970.
    """

    tables: Tables
    findings: Findings
    rows: Rows
    answer: Answer
    examples: tuple[Example, ...]
    wrong: Wrong | None
    classes: ClassReport | None
    schedule: dict[str, Any] | None
    recipe: dict[str, Any] | None
    facts: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    made: float


def gather(folder: Path, tables: Tables, findings: Findings) -> Content:
    """From a study's folder, its tables and what the analysis makes of them."""
    rows = rows_of.of_tables(tables)
    examples = tuple(_examples(folder, tables, rows))
    return Content(
        tables=tables,
        findings=findings,
        rows=rows,
        answer=answer(tables, findings, rows),
        examples=examples,
        wrong=wrong_of(tables, [(example.what, example.trial) for example in examples]),
        classes=of_winner(folder, tables),
        schedule=read_json(folder / "schedule.json"),
        recipe=read_json(folder / "best" / "recipe.json"),
        facts=_facts(tables, rows),
        provenance=_provenance(folder, tables),
        made=time.time(),
    )


def _examples(folder: Path, tables: Tables, rows: Rows) -> list[Example]:
    """The winner, or the best trial where that was not searched; the median and the worst of the search."""
    order = ranked(rows, tables.study.better)
    winner = winner_of(tables, rows)
    if not order or winner is None:
        return []
    first = winner if winner in order else order[0]
    picked = {"best": first, "median": order[len(order) // 2], "worst": order[-1]}
    seen: dict[int, str] = {}
    for what, i in picked.items():
        seen.setdefault(i, what)
    return [_example(folder, tables, rows, i, what) for i, what in seen.items()]


def _example(folder: Path, tables: Tables, rows: Rows, i: int, what: str) -> Example:
    trial, objective = str(rows.column("trial")[i]), tables.study.objective
    counterpart = objective.replace("val_", "clean_", 1)
    found = [row for row, name in enumerate(tables.epochs["trial"].tolist()) if name == trial]
    found.sort(key=lambda row: tables.epochs["step"][row])
    found = found[:: max(1, -(-len(found) // EXCERPT))]
    clean = [_known(tables.epochs[counterpart][row]) for row in found] if counterpart in METRICS else []
    values = [f"{c.name} {_brief(rows.column(c.name)[i])}" for c in rows.searched if rows.column(c.name)[i] is not None]
    score, epochs = rows.column("best")[i], rows.column("epochs")[i]
    return Example(
        what=what,
        trial=trial,
        told=f"{objective} {score:.4f} after {epochs} epoch{'s' * (epochs != 1)}, {rows.column('state')[i]}. "
        + ", ".join(values),
        steps=tuple(int(tables.epochs["step"][row]) for row in found),
        val=tuple(_known(tables.epochs[objective][row]) for row in found),
        clean=tuple(clean) or (None,) * len(found),
        metrics=(objective, counterpart),
        strips=_some(strips.of_trial(folder / "trials" / trial)),
    )


def _some(found: dict[int, Path]) -> tuple[tuple[int, Path], ...]:
    """The first, the middle and the last strip."""
    steps = sorted(found)
    places = sorted({0, len(steps) // 2, len(steps) - 1}) if steps else []
    return tuple((steps[place], found[steps[place]]) for place in places[-STRIPS:])


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _facts(tables: Tables, rows: Rows) -> tuple[tuple[str, str], ...]:
    study, images = tables.study, tables.provenance.get("images") or {}
    classes = tables.provenance.get("classes") or ()
    counts = ", ".join(f"{part} {count}" for part, count in images.items()) if isinstance(images, dict) else ""
    roles = rows.column("role")
    kinds = {role: sum(r.split()[0] == role for r in roles) for role in ("search", "control", "noise", "confirm")}
    epochs = sum(v or 0 for v in rows.column("epochs"))
    told = [
        ("data", f"{study.data.source} ({counts})" if counts else study.data.source),
        ("classes", str(len(classes)) if classes else ""),
        ("model", _model(tables)),
        ("objective", f"{study.objective}, {'higher' if study.better == 'max' else 'lower'} is better"),
        ("trials", ", ".join(f"{count} {role}" for role, count in kinds.items() if count)),
        ("epochs trained", f"{epochs:,}"),
        ("scheduler, searcher", f"{study.scheduler.name}, {study.searcher.name}"),
    ]
    return tuple((name, value) for name, value in told if value)


def _model(tables: Tables) -> str:
    recipe, space = tables.study.recipe, tables.study.space.domains
    name = "searched" if "model.name" in space else recipe.model.name
    size = "searched" if "data.image_size" in space else f"{recipe.data.image_size} px"
    return f"{name}, {size}"


def _provenance(folder: Path, tables: Tables) -> tuple[tuple[str, str], ...]:
    known = tables.provenance
    versions = known.get("versions") or {}
    created = known.get("created")
    nodes: Sequence[Any] = known.get("nodes") or ()
    mappings = ", ".join(f"{name} {known[key]}" for name, key in MAPPINGS if known.get(key) is not None)
    told = [
        ("study", f"{tables.study.name}, in {folder.resolve()}"),
        ("begun", time.strftime("%Y-%m-%d %H:%M", time.localtime(created)) if created else ""),
        ("command", " ".join(map(str, known.get("command") or ()))),
        ("git commit", str(known.get("git_commit") or "")),
        ("data fingerprint", str(known.get("data_fingerprint") or "")),
        ("strength mappings", mappings),
        ("seed", str(tables.study.recipe.seed)),
        ("machines", "; ".join(_machine(node) for node in nodes)),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]
    return tuple((name, value) for name, value in told if value)


MAPPINGS = (("augment", "augment_mapping"), ("regularize", "regularize_mapping"))


def _machine(node: Any) -> str:
    parts = [f"{node[kind]:g} {kind}" for kind in ("CPU", "GPU") if node.get(kind)]
    return ", ".join([*parts, f"{node['memory'] / 1e9:.0f} GB"] if node.get("memory") else parts)
