"""What is wrong with the trials of a study: how often each verdict was given, and why to the best and the worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cvtune.analysis.tables import Tables
from cvtune.health import FEWEST, RULES, Rule

WELL = "Nothing is seen to be wrong."
UNKNOWN = f"Fewer than {FEWEST} reports: too few to judge."


@dataclass(frozen=True)
class Count:
    """How many of the trials got a verdict, and the first of them."""

    rule: Rule
    trials: int
    first: str


@dataclass(frozen=True)
class Judged:
    """A trial and what is seen in its reports. `what`: best, median or worst."""

    what: str
    trial: str
    evidence: str


@dataclass(frozen=True)
class Wrong:
    """The verdicts of a study, most frequent first.

    Attributes:
        total: trials that were judged.
        few: those that have made too few reports for it.
        well: of these, the ones without a verdict.
    """

    counts: tuple[Count, ...]
    judged: tuple[Judged, ...]
    total: int
    few: int
    well: int


def of_tables(tables: Tables, shown: Sequence[tuple[str, str]]) -> Wrong | None:
    """What the table `trials` says; None where it holds no verdicts, as one of an earlier version.

    Args:
        tables: see there.
        shown: what (best, median, worst) and the name of the trials whose evidence is given.
    """
    if "verdicts" not in tables.trials:
        return None
    names = [str(name) for name in tables.trials["trial"].tolist()]
    said = [set((text or "").split(", ")) - {""} for text in tables.trials["verdicts"].tolist()]
    counts = Counter(name for some in said for name in some)
    rows = [
        Count(rule, counts[rule.name], next(t for t, some in zip(names, said, strict=True) if rule.name in some))
        for rule in RULES
        if counts[rule.name]
    ]
    enough = [bool(some) or epochs >= FEWEST for some, epochs in zip(said, tables.column("epochs"), strict=True)]
    evidence = {
        name: text or (WELL if judged else UNKNOWN)
        for name, text, judged in zip(names, tables.column("evidence").tolist(), enough, strict=True)
    }
    return Wrong(
        counts=tuple(sorted(rows, key=lambda row: -row.trials)),
        judged=tuple(Judged(what, trial, evidence.get(trial, UNKNOWN)) for what, trial in shown),
        total=sum(enough),
        few=len(names) - sum(enough),
        well=sum(judged and not some for judged, some in zip(enough, said, strict=True)),
    )
