"""What a report in W&B says, as plain values: text, and panels over the study's runs. Nothing here knows W&B's client.

It is made of the same content as `report.html`, so both say the same words. To add a part, add a row to `PARTS`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cvtune import card
from cvtune.confirm import DEFAULT
from cvtune.epoch import METRICS
from cvtune.history import TrialRecord
from cvtune.recipe import Recipe
from cvtune.report.content import Content
from cvtune.track import runs
from cvtune.track.client import STRIP
from cvtune.track.study_run import Material

IMPORTANT = 12  # names whose importance is listed


@dataclass(frozen=True)
class Words:
    """Text in Markdown."""

    markdown: str


@dataclass(frozen=True)
class Code:
    """Text as it is."""

    text: str
    language: str


@dataclass(frozen=True)
class Runs:
    """Which runs of the project the panels beside it show: all of these that hold; () means any."""

    name: str
    group: str
    job_types: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates. `config`: whether it is a value of the recipe, else one of the summary."""

    name: str
    config: bool
    log: bool = False


@dataclass(frozen=True)
class Coordinates:
    """Parallel coordinates, a line per run."""

    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Importance:
    """W&B's own importance of each value of the config for a metric of the summary."""

    of: str


@dataclass(frozen=True)
class Curves:
    """A metric over the epochs, mean and range of the runs that share a value of the config."""

    metric: str
    by: str


@dataclass(frozen=True)
class Bars:
    """A metric of the summary, mean and range of the runs that share a value of the config."""

    metric: str
    by: str


@dataclass(frozen=True)
class Media:
    """Pictures or plots that runs have logged under a key, by step."""

    key: str


@dataclass(frozen=True)
class Differences:
    """In which values of their config runs differ, side by side."""


Panel = Coordinates | Importance | Curves | Bars | Media | Differences


@dataclass(frozen=True)
class Grid:
    """Panels over the same runs."""

    runs: Runs
    panels: tuple[Panel, ...]


Block = Words | Code | Grid


@dataclass(frozen=True)
class Part:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Draft:
    """A whole report."""

    title: str
    description: str
    parts: tuple[Part, ...]

    @property
    def media(self) -> tuple[str, ...]:
        """The keys of all pictures and plots that its panels show."""
        grids = [block for part in self.parts for block in part.blocks if isinstance(block, Grid)]
        return tuple(panel.key for grid in grids for panel in grid.panels if isinstance(panel, Media))


@dataclass(frozen=True)
class Subject:
    """A study as W&B has it, and what its report shows."""

    of: Material
    content: Content

    def runs_of(self, name: str, records: Sequence[TrialRecord]) -> Runs:
        """The runs of these trials."""
        ids = tuple(runs.run_id(self.of.study, self.of.provenance, record.trial) for record in records)
        return Runs(name, self.of.study.name, ids=ids)

    @property
    def trials(self) -> Runs:
        """The runs of the search, with noise and control trials."""
        return Runs("trials", self.of.study.name, ("trial",))


def compose(of: Material, content: Content) -> Draft:
    """The report of a study: what there is something to say about, each part under its heading."""
    subject = Subject(of, content)
    made = time.strftime("%Y-%m-%d", time.localtime(content.made))
    parts = [Part(title, tuple(make(subject))) for title, make in PARTS]
    return Draft(of.study.name, f"Written by cvtune on {made}.", tuple(part for part in parts if part.blocks))


def answer(subject: Subject) -> Iterator[Block]:
    """The answer in words, as `report.html` gives it, and what was measured."""
    told = subject.content.answer
    first, *others = [card.plain(sentence) for sentence in told.sentences]
    yield Words("\n\n".join([f"**{first}**", *others]))
    if told.cards:
        yield Words(_table(("measured", "value", ""), [(one.title, one.value, one.note) for one in told.cards]))
    if told.recipe:
        yield Words(_table(("best recipe", "value"), [(one.name, one.value) for one in told.recipe]))
    for title, lines in (("What to change next", told.steps), ("What to beware of", told.warnings)):
        if lines:
            yield Words("\n".join([f"**{title}**", "", *(f"- {card.plain(line)}" for line in lines)]))


def coordinates(subject: Subject) -> Iterator[Block]:
    """Every searched value against the best score of each trial."""
    searched = [Axis(column.name, True, column.log) for column in subject.content.rows.searched]
    if searched:
        yield Grid(subject.trials, (Coordinates((*searched, Axis("best", False))),))


def importance(subject: Subject) -> Iterator[Block]:
    """Which values matter: by the analysis with its intervals, and as W&B reckons it."""
    found = subject.content.findings
    if found.importances:
        shares = [(" x ".join(i.names), _percent(i.share.mean), _range(i.share)) for i in found.importances[:IMPORTANT]]
        yield Words(_table(("value", "share of the variation of the expected score", "90 % interval"), shares))
    elif "importances" in found.missing:
        yield Words(f"Not told: {card.plain(found.missing['importances'])}.")
    if subject.content.rows.searched:
        yield Grid(subject.trials, (Importance("best"),))


def surface(subject: Subject) -> Iterator[Block]:
    """The fitted surface, which the study's run has as a plot."""
    if subject.content.findings.surface is not None:
        yield Grid(Runs("study", subject.of.study.name, (runs.STUDY,)), (Media("surface"),))
    elif "surface" in subject.content.findings.missing:
        yield Words(f"There is none: {card.plain(subject.content.findings.missing['surface'])}.")


def curves(subject: Subject) -> Iterator[Block]:
    """Learning curves, grouped by augmentation strength."""
    yield Grid(subject.trials, (Curves(subject.of.study.objective, runs.BAND),))


def predictions(subject: Subject) -> Iterator[Block]:
    """What the best, the median and the worst trial made of the same validation images."""
    if subject.of.study.tracking.private:
        yield Words("Pictures of single images stay where they are (`tracking.private`).")
        return
    study, history = subject.of.study, subject.of.history
    large = runs.is_large(study, history)
    shown = [history.trials[one.trial] for one in subject.content.examples if one.strips]
    if shown := [record for record in shown if runs.has_run(study, record, large)]:
        yield Grid(subject.runs_of("best, median, worst", shown), (Media(STRIP),))


def baseline(subject: Subject) -> Iterator[Block]:
    """The winner against the default recipe: on the test images where there are any, else on the validation images."""
    study, history = subject.of.study, subject.of.history
    compared = subject.content.tables.comparison or {}
    if recipes := compared.get("recipes"):
        scores = [(r["label"], f"{r['mean']:.4f}", f"{r['low']:.4f} to {r['high']:.4f}") for r in recipes]
        yield Words(_table(("recipe", str(compared["metric"]), "95 % interval"), scores))
    tested = [record for record in history.trials.values() if record.test is not None]
    metric = study.objective.replace("val_", "test_", 1)
    if tested and metric != study.objective and study.objective in METRICS:
        yield Grid(subject.runs_of("confirmed", tested), (Bars(metric, "label"),))
    best, defaults = history.trials.get(subject.content.answer.winner), history.of("noise")
    defaults += [record for record in history.of("confirm") if record.label == DEFAULT]
    if best is None or not defaults:
        yield Words("No trial of the default recipe has a score beside a best one, so nothing can be compared.")
    elif best in defaults:
        yield Words("The default recipe is the best one.")
    else:
        panels: tuple[Panel, ...] = (Differences(),) if tested else (Bars("best", "role"), Differences())
        yield Grid(subject.runs_of("best and default", [best, defaults[0]]), panels)


def origin(subject: Subject) -> Iterator[Block]:
    """What it takes to do it again: data, command, versions, and the recipe where it is not the default."""
    study, content = subject.of.study, subject.content
    known = dict(content.facts) | dict(content.provenance)
    known["study"] = study.name  # without the folder of this machine
    known["command"] = card.command(subject.of.provenance.get("command") or ())
    yield Words(_table(("", ""), list(known.items())))
    recipe = _recipe(subject)
    if recipe is not None:
        yield Words("The best recipe where it is not the default; `cvtune best` prints all of it as a workflow:")
        yield Code(json.dumps(card.differing(recipe), indent=2), "json")


PARTS: tuple[tuple[str, Callable[[Subject], Iterator[Block]]], ...] = (
    ("The answer", answer),
    ("The sweet spot", surface),
    ("All trials", coordinates),
    ("What matters", importance),
    ("Curves by augmentation strength", curves),
    ("Predictions", predictions),
    ("Best against default", baseline),
    ("How to do it again", origin),
)


def readable(draft: Draft, to: str) -> str:
    """All of a report as JSON to read: each text as its lines, each panel under its kind."""
    parts = [{"title": part.title, "blocks": [_plain(block) for block in part.blocks]} for part in draft.parts]
    whole = {"to": to, "title": draft.title, "description": draft.description, "parts": parts}
    return json.dumps(whole, indent=2, ensure_ascii=False)


def _plain(block: Block) -> Mapping[str, Any]:
    if isinstance(block, Words):
        return {"words": block.markdown.splitlines()}
    if isinstance(block, Code):
        return {"code": block.text.splitlines()}
    return {"runs": asdict(block.runs), "panels": [{type(p).__name__.lower(): asdict(p)} for p in block.panels]}


def _recipe(subject: Subject) -> Recipe | None:
    """The winner's recipe, else that of the best trial."""
    if subject.content.recipe is not None:
        return Recipe.model_validate(subject.content.recipe)
    best = subject.of.history.best(subject.of.study)
    return best[0].recipe if best else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([card.plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _range(share: Any) -> str:
    return f"{share.low:.0%} to {share.high:.0%}"
