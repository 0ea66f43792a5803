"""The answer of a report: the winner, its score and how sure that is, what to change next, what to beware of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cvtune.analysis.findings import Findings
from cvtune.analysis.tables import Tables
from cvtune.confirm import spoken
from cvtune.domains import IntUniform, LogUniform, Uniform
from cvtune.history import FAILED, REASONS
from cvtune.recipe import FIELDS
from cvtune.report.rows import Rows, ranked

EDGE = 0.05  # share of a range: a best value nearer to its end asks for a wider range
MANY_FAILED = 0.1  # share of trials
ENDS = {"augment.strength": (0, 1), "regularize.strength": (0, 1)}  # no strength lies beyond


@dataclass(frozen=True)
class Card:
    """One number to see at first sight."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Setting:
    """One searched value of the winner, and whether it can be read of a range where it lies: 0 low end, 1 high end."""

    name: str
    value: str
    hint: str
    place: float | None


@dataclass(frozen=True)
class Answer:
    """What stands at the top of a report.

    Attributes:
        sentences: the answer in words, the first one the headline.
        steps: what to change next.
        warnings: what to know before trusting it.
    """

    winner: str
    sentences: tuple[str, ...]
    cards: tuple[Card, ...]
    recipe: tuple[Setting, ...]
    steps: tuple[str, ...]
    warnings: tuple[str, ...]


def answer(tables: Tables, findings: Findings, rows: Rows) -> Answer:
    """The top of a report, of whatever the study has: also before a confirmation, and without a single score."""
    best = ranked(rows, tables.study.better, ("search", "control", "noise"))
    winner = winner_of(tables, rows)
    compared = tuple((tables.comparison or {}).get("sentences", ()))
    said = (findings.sentences or compared) if compared else (*_plain(tables, rows, best), *findings.sentences)
    recipe = () if winner is None else tuple(_recipe(tables, rows, winner))
    return Answer(
        winner="" if winner is None else str(rows.column("trial")[winner]),
        sentences=tuple(said),
        cards=tuple(_cards(tables, findings, rows, best)),
        recipe=recipe,
        steps=tuple(_steps(tables, rows, winner)),
        warnings=(*findings.warnings, *_warnings(tables, rows)),
    )


def winner_of(tables: Tables, rows: Rows) -> int | None:
    """The number of the trial whose recipe won: of the confirmation, else of the search; None without a score."""
    label = (tables.comparison or {}).get("winner")
    if label:
        trials, roles = rows.column("trial"), rows.column("role")
        wanted = [i for i, trial in enumerate(trials) if trial == label]
        wanted += [i for i, role in enumerate(roles) if role == f"confirm {label}"]
        wanted += [i for i, role in enumerate(roles) if label == "default" and role == "noise"]
        if wanted:
            return wanted[0]
    best = ranked(rows, tables.study.better, ("search", "control", "noise"))
    return best[0] if best else None


def _plain(tables: Tables, rows: Rows, best: list[int]) -> tuple[str, ...]:
    if not best:
        return ("No trial has a score yet, so there is nothing to choose from.",)
    i = best[0]
    score, epochs = rows.column("best")[i], rows.column("epochs")[i]
    return (
        f"Trial {rows.column('trial')[i]} has the best {tables.study.objective} so far: {score:.4g} after {epochs} "
        "epochs. It is the best of many, so luck has a part in it.",
    )


def _cards(tables: Tables, findings: Findings, rows: Rows, best: list[int]) -> Iterator[Card]:
    compared = tables.comparison or {}
    own = next((r for r in compared.get("recipes", ()) if r["label"] == compared.get("winner")), None)
    if own is not None:
        seeds = len(own["seeds"])
        note = f"95 % interval {own['low']:.4g} to {own['high']:.4g}; {seeds} seeds, {compared['images']} images"
        yield Card(f"Test {spoken(compared['metric'])}", f"{own['mean']:.4f}", note)
    elif best:
        score = rows.column("best")[best[0]]
        yield Card(tables.study.objective, f"{score:.4f}", "on the validation images; not confirmed with fresh seeds")
    gain = next((d for d in compared.get("differences", ()) if d["label"] == "default"), None)
    if gain is not None:
        chance = " (may be chance)" if "default" in compared.get("tied", ()) else ""
        note = f"95 % interval {gain['low']:+.3g} to {gain['high']:+.3g}{chance}"
        yield Card("Against the default recipe", f"{gain['mean']:+.4f}", note)
    if findings.rungs is not None and findings.rungs.whole:
        rungs = findings.rungs
        note = f"{rungs.trained} of {rungs.whole} epochs were trained"
        yield Card("Saved by early stopping", f"{rungs.saved:.0%}", note)
    if findings.costs is not None:
        costs = findings.costs
        roles = ", ".join(f"{role} {hours:.2g}" for role, hours in costs.hours.items() if hours)
        yield Card("Cost", f"{costs.total:.3g} {costs.unit}", roles)


def _recipe(tables: Tables, rows: Rows, winner: int) -> Iterator[Setting]:
    for column in rows.searched:
        value = rows.column(column.name)[winner]
        place = _place(tables.study.space.domains[column.name], value)
        yield Setting(column.name, _shown(value, column.unit), FIELDS[column.name].description, place)


def _shown(value: Any, unit: str) -> str:
    text = "not used" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".rstrip() if value is not None else text


def _place(domain: Any, value: Any) -> float | None:
    """Where a number lies in its range, 0 to 1, measured as the range is searched; None of what has no range."""
    if not isinstance(domain, Uniform | LogUniform | IntUniform):
        return None
    return domain.quantile(value) if domain.contains(value) else None


def _steps(tables: Tables, rows: Rows, winner: int | None) -> Iterator[str]:
    """What to change next, from what is seen in the rows; the analysis adds its own sentences."""
    study, compared = tables.study, tables.comparison
    if winner is None:
        yield "Look at what the trials printed: `cvtune logs STUDY TRIAL`."
        return
    for column in rows.searched:
        domain, value = study.space.domains[column.name], rows.column(column.name)[winner]
        place = _place(domain, value)
        if place is not None and not EDGE < place < 1 - EDGE:
            end, limit = ("lower", domain.edges()[0]) if place <= EDGE else ("upper", domain.edges()[-1])
            if limit not in ENDS.get(column.name, ()):
                yield f"Widen the range of {column.name}: the best value {value:.3g} is at its {end} end, {limit:.3g}."
    if compared is None:
        yield "Confirm the best recipes with fresh seeds (confirm.top) before you rely on a difference."
    elif "default" in compared.get("tied", ()):
        yield (
            "Keep the default recipe where you must choose now, or measure more finely: more seeds (confirm.seeds) or "
            "more test images. The gain of the winner may be chance."
        )


def _warnings(tables: Tables, rows: Rows) -> Iterator[str]:
    states = rows.column("state")
    failed = Counter(state for state in states if state in FAILED)
    for reason, count in failed.items():
        first = rows.column("trial")[states.index(reason)]
        yield f"{count} of {len(states)} trials ended as {reason} ({REASONS[reason]}), first trial {first}."
    if len(states) and sum(failed.values()) > MANY_FAILED * len(states):
        yield "So many trials failed that the search saw only a part of its space."
    if open_ := states.count("not over"):
        yield f"The study is not finished: {open_} trials are not over. `cvtune run` with the same target goes on."
    images: Mapping[str, Any] = tables.provenance.get("images") or {}
    if isinstance(images, dict) and images.get("test") == 0:
        yield "There are no test images, so every score here is one that the search has looked at."
