"""Compares finished studies: scores with their intervals, surfaces side by side, and where the best recipes differ."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from cvtune.analysis import AXES, analyse
from cvtune.errors import ConfigError
from cvtune.report import figures
from cvtune.report.content import Content, gather
from cvtune.report.page import fill
from cvtune.report.rows import ranked
from cvtune.results import read_tables, write_tables


@dataclass(frozen=True)
class Line:
    """One study in the table: what its score is measured by, the score with its interval, what it took."""

    study: str
    metric: str
    score: float | None
    low: float | None
    high: float | None
    basis: str
    trials: int
    epochs: int
    cost: str

    @property
    def interval(self) -> str:
        """Such as "0.9746 to 0.9978"."""
        return "" if self.low is None or self.high is None else f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Difference:
    """A value in which the best recipes differ: its dotted name, and what each study has."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """Studies side by side; `notes` say what stands against comparing them."""

    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    contents: tuple[Content, ...]


def compare(folders: Sequence[Path]) -> Compared:
    """Read, analyse and compare studies.

    Raises:
        ConfigError: fewer than two, or one of them cannot be read.
    """
    if len(folders) < 2:
        raise ConfigError(f"compare needs at least two studies, but {len(folders)} was given. Name another one.")
    contents = tuple(map(_content, folders))
    recipes = [_flat(content.recipe or {}) for content in contents]
    return Compared(tuple(map(_line, contents)), tuple(_differences(recipes)), tuple(_notes(contents)), contents)


def render(compared: Compared) -> str:
    """The page: one file that needs nothing else."""
    return fill(
        "compare.html",
        _surfaces(compared.contents),
        {},
        title="cvtune compare",
        compared=compared,
        axes=AXES,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def _content(folder: Path) -> Content:
    write_tables(folder)
    tables = read_tables(folder)
    return gather(folder, tables, analyse(tables))


def _line(content: Content) -> Line:
    study, rows, costs = content.tables.study, content.rows, content.findings.costs
    taken = (len(rows.rows), sum(v or 0 for v in rows.column("epochs")))
    cost = f"{costs.total:.3g} {costs.unit}" if costs else ""
    tested = content.tables.comparison or {}
    own = next((r for r in tested.get("recipes", ()) if r["label"] == tested.get("winner")), None)
    if own is not None:
        basis = f"test images, {len(own['seeds'])} seeds, 95 %"
        return Line(study.name, tested["metric"], own["mean"], own["low"], own["high"], basis, *taken, cost)
    best = ranked(rows, study.better, ("search", "control", "noise"))
    score = rows.column("best")[best[0]] if best else None
    return Line(study.name, study.objective, score, None, None, "best trial, not confirmed", *taken, cost)


def _differences(recipes: Sequence[Mapping[str, Any]]) -> list[Difference]:
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name != "seed")
    found = [(name, tuple(_shown(recipe.get(name)) for recipe in recipes)) for name in names]
    return [Difference(name, values) for name, values in found if len(set(values)) > 1]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe as JSON by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _notes(contents: Sequence[Content]) -> list[str]:
    found = []
    if len(set(map(_images, contents))) > 1:
        found.append("The studies were trained on different images, so their scores say nothing about their recipes.")
    lines = [_line(content) for content in contents]
    if len({line.metric for line in lines}) > 1:
        found.append("The scores are of different metrics: " + ", ".join(f"{x.study} {x.metric}" for x in lines) + ".")
    mappings = {content.tables.provenance.get(key) for content in contents for key in ("augment_mapping",)}
    if len(mappings) > 1:
        found.append("The same augmentation strength means different settings in them: the mapping's version differs.")
    if any(line.low is None for line in lines):
        found.append("A study that was not confirmed shows the best of many scores, which luck has made too good.")
    return found


def _images(content: Content) -> Any:
    """What tells a study's images, labels and split from others."""
    return content.tables.provenance.get("data_fingerprint")


def _surfaces(contents: Sequence[Content]) -> dict[str, go.Figure]:
    """One surface for each study that has one, in the same colors where objective and images are the same."""
    shown = [(i, c) for i, c in enumerate(contents) if c.findings.surface is not None]
    alike = len({(c.tables.study.objective, _images(c)) for _, c in shown}) == 1
    ends = [
        (float(c.findings.surface.mean.min()), float(c.findings.surface.mean.max()))
        for _, c in shown
        if c.findings.surface
    ]
    span = (min(low for low, _ in ends), max(high for _, high in ends)) if ends and alike else None
    made = {}
    for i, content in shown:
        assert content.findings.surface is not None
        better = content.tables.study.better
        made[f"surface-{i}"] = figures.surface(content.findings.surface, content.findings.ridge, better, span=span)
    return made
