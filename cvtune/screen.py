"""What a person sees of a study: a live table on a terminal, one plain line per event in a log file, a summary."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cvtune.journal import REASONS, History, TrialRecord
from cvtune.recipe import Value
from cvtune.study import Study

REFRESH_S = 0.25
GRID = 4  # cells along each axis of the map of the two strengths


class Screen:
    """Listens to a study's events and shows them: live on a terminal, else line by line.

    Called from the thread that drives the study; everything is drawn there, so no event is seen half applied.
    """

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console, self._line = study, console, Lines(study)
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(f"[dim]{datetime.now():%H:%M:%S}[/] {line}", highlight=False)

    def __call__(self, event: dict[str, Any], history: History) -> None:
        if self._live is None:
            if line := self._line(event, history):
                print(line, flush=True)
        elif time.monotonic() - self._drawn > REFRESH_S or event["kind"] == "close":
            rows = max(5, self._console.height - 8)
            self._live.update(Group(trials_table(self._study, history, rows), progress_line(self._study, history)))
            self._drawn = time.monotonic()


class Lines:
    """Events as lines of a log file, one each; empty for what only the journal needs."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._best: tuple[float, str] | None = None  # larger is better; kept here, as events may be many

    def __call__(self, event: dict[str, Any], history: History) -> str:
        clock = f"{datetime.fromtimestamp(event['t']):%H:%M:%S}"
        if event["kind"] == "epoch":
            return f"{clock} {self._epoch(event, history.trials[event['trial']])}"
        if event["kind"] == "end":
            detail = f": {event['message']}" if event["message"] else ""
            return f"{clock} trial {event['trial']} {event['reason']}{detail}"
        if event["kind"] == "call" and event["action"] == "retry":
            return f"{clock} trial {event['trial']} taken up again: {event['why']}"
        if event["kind"] == "open":
            return f"{clock} study {self._study.name} term {event['term']} on {event['host']}"
        return f"{clock} study {self._study.name} closed: {event['why']}" if event["kind"] == "close" else ""

    def _epoch(self, event: dict[str, Any], record: TrialRecord) -> str:
        objective, sign = self._study.objective, 1 if self._study.better == "max" else -1
        score = event[objective]
        if score is not None and (self._best is None or sign * score > self._best[0]):
            self._best = sign * score, record.trial
        tail = f"  best {sign * self._best[0]:.4f} ({self._best[1]})" if self._best else ""
        return f"trial {record.trial} epoch {event['epoch']}/{record.recipe.max_epochs} {objective} {show(score)}{tail}"


def trials_table(study: Study, history: History, rows: int) -> Table:
    """The running trials, then the best of the others, at most `rows` lines."""
    searched = list(study.space.domains)
    table = Table(box=box.SIMPLE_HEAD, title=f"{study.name}: {study.objective}", title_justify="left", pad_edge=False)
    for name in (
        "trial",
        "state",
        "epoch",
        *(n.rpartition(".")[0][:7] + "." + n.rpartition(".")[2] for n in searched),
        "best",
        "last",
    ):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=True)
    best = history.best(study.objective, study.better)
    sign = -1 if study.better == "max" else 1
    ranked = sorted(
        history.trials.values(),
        key=lambda r: (r.reason is not None, sign * (_best(r, study) if r.epochs else -sign * 1e9)),
    )
    for record in ranked[:rows]:
        style = "bold green" if best and record is best[0] else "" if record.reason is None else "dim"
        state = record.reason or ("running" if record.segment >= 0 else "waiting")
        last = show(record.epochs[-1][study.objective]) if record.epochs else ""
        values = [show(record.values.get(name)) for name in searched]
        top = show(_best(record, study)) if record.epochs else ""
        table.add_row(
            record.trial, state, f"{record.steps}/{record.recipe.max_epochs}", *values, top, last, style=style
        )
    if len(ranked) > rows:
        table.caption = f"and {len(ranked) - rows} more"
    return table


def progress_line(study: Study, history: History) -> Text:
    """How far the study is, in one line."""
    records = list(history.trials.values())
    ended = sum(r.reason is not None for r in records)
    trained = sum(len(r.epochs) for r in records)
    return Text(
        f"{ended} of {study.budget.trials} trials ended, {len(records) - ended} open, {trained} epochs trained",
        style="cyan",
    )


def summary(study: Study, history: History, folder: Path, seconds: float | None = None) -> RenderableType:
    """What a finished (or broken off) study comes to: best recipe, score, epochs saved, where the tables are."""
    best = history.best(study.objective, study.better)
    records = list(history.trials.values())
    trained = sum(len(r.epochs) for r in records)
    facts = Table.grid(padding=(0, 2))
    if best:
        record, epoch = best
        facts.add_row(
            "best",
            f"[bold green]{study.objective} = {epoch[study.objective]:.4f}[/]  "
            f"trial {record.trial}, epoch {epoch['epoch']}",
        )
        facts.add_row(
            "recipe", "  ".join(f"{name} = {show(value)}" for name, value in record.values.items()) or "the base recipe"
        )
    took = f" in {seconds:.0f} s" if seconds else ""
    facts.add_row("trained", f"{len(records)} trials, {trained} epochs{took}")
    if full := sum(r.recipe.max_epochs for r in records if r.reason == "stopped_scheduler"):
        saved = full - sum(len(r.epochs) for r in records if r.reason == "stopped_scheduler")
        everything = sum(r.recipe.max_epochs for r in records)
        facts.add_row(
            "saved", f"{study.scheduler.name.upper()} saved {saved} of {everything} epochs ({saved / everything:.0%})"
        )
    failed = [
        r
        for r in records
        if r.reason in ("diverged", "oom_gpu", "oom_host", "hung", "data_error", "code_error", "infra_lost")
    ]
    for reason in sorted({r.reason for r in failed if r.reason}):
        some = [r for r in failed if r.reason == reason]
        facts.add_row(
            "[red]failed[/]",
            f"{len(some)} trials {reason} ({REASONS[reason]}), first {some[0].trial}: {some[0].message}",
        )
    facts.add_row("tables", str(folder / "tables"))
    grid = strength_grid(study, history)
    return Group(facts, "", grid) if grid else facts


def strength_grid(study: Study, history: History) -> Table | None:
    """The best score in each cell over the two strengths, if both were searched and enough trials ended."""
    axes = ("augment.strength", "regularize.strength")
    records = [r for r in history.trials.values() if r.epochs and all(isinstance(r.values.get(a), float) for a in axes)]
    if len(records) < 2 * GRID:
        return None
    cells: dict[tuple[int, int], list[float]] = {}
    for record in records:
        x, y = (min(int(float(record.values[a] or 0) * GRID), GRID - 1) for a in axes)
        cells.setdefault((x, y), []).append(_best(record, study))
    pick = max if study.better == "max" else min
    flat = sorted((pick(scores) for scores in cells.values()), reverse=study.better == "min")
    table = Table(
        box=None,
        title="best score found by augment.strength (across) and regularize.strength (down)",
        title_justify="left",
        caption="number of trials in brackets; a look, not yet a model of the surface",
        caption_justify="left",
    )
    table.add_column("")
    for x in range(GRID):
        table.add_column(f"{x / GRID:.2f}-{(x + 1) / GRID:.2f}", justify="center")
    for y in range(GRID):
        row: list[RenderableType] = [f"{y / GRID:.2f}-{(y + 1) / GRID:.2f}"]
        for x in range(GRID):
            scores = cells.get((x, y))
            rank = flat.index(pick(scores)) / max(1, len(flat) - 1) if scores else 0.0
            shade = f"color({(22, 28, 34, 40, 46)[round(rank * 4)]})"
            row.append(Text(f"{pick(scores):.3f} ({len(scores)})", style=shade) if scores else Text("-", style="dim"))
        table.add_row(*row)
    return table


def show(value: Value) -> str:
    """A value for a table cell."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best(record: TrialRecord, study: Study) -> float:
    scores = [e[study.objective] for e in record.epochs if e[study.objective] is not None]
    pick = max if study.better == "max" else min
    return float(pick(scores)) if scores else float("nan")
