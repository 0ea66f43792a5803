"""What a person sees of a study: a live table on a terminal, one plain line per event in a log file, a summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cvtune import health
from cvtune.controls import would_have_stopped
from cvtune.durable import read_json
from cvtune.history import FAILED, REASONS, History, TrialRecord
from cvtune.noise import noise_floor
from cvtune.printable import printable
from cvtune.recipe import Value
from cvtune.schedulers import ASHA
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

    def settle(self, study: Study) -> None:
        """Show `study` from here on: its objective is settled."""
        self._study, self._line = study, Lines(study)

    def say(self, line: str) -> None:
        self._console.print(Text.assemble((f"{datetime.now():%H:%M:%S}", "dim"), f" {line}"), highlight=False)

    def __call__(self, event: Mapping[str, Any], history: History) -> None:
        if self._live is None:
            if line := self._line(event, history):
                print(line, flush=True)
            return
        if event["kind"] == "share":
            self.say(shared(event))
        if time.monotonic() - self._drawn > REFRESH_S or event["kind"] == "close":
            rows = max(5, self._console.height - 8)
            self._live.update(Group(trials_table(self._study, history, rows), progress_line(self._study, history)))
            self._drawn = time.monotonic()


class Lines:
    """Events as lines of a log file, one each; empty for what only the journal needs."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._best: tuple[float, str] | None = None  # larger is better; kept here, as events may be many

    def __call__(self, event: Mapping[str, Any], history: History) -> str:
        clock = f"{datetime.fromtimestamp(event['t']):%H:%M:%S}"
        if event["kind"] == "epoch":
            return f"{clock} {self._epoch(event, history.trials[event['trial']])}"
        if event["kind"] == "end":
            detail = f": {printable(event['message'])}" if event["message"] else ""
            return f"{clock} trial {event['trial']} {event['reason']}{detail}"
        if event["kind"] == "retry":
            return f"{clock} trial {event['trial']} taken up again: {event['why']}"
        if event["kind"] == "share":
            return f"{clock} {shared(event)}"
        if event["kind"] == "winner":
            return f"{clock} confirmed: {event['label']}"
        if event["kind"] == "open":
            self._take_up(history)
            return f"{clock} study {self._study.name} term {event['term']} on {event['host']}"
        return f"{clock} study {self._study.name} closed: {event['why']}" if event["kind"] == "close" else ""

    def _take_up(self, history: History) -> None:
        """What earlier terms have reached counts as well."""
        if best := history.best(self._study):
            record, epoch = best
            score = float(self._study.score(epoch) or 0)
            self._best = (score if self._study.better == "max" else -score), record.trial

    def _epoch(self, event: Mapping[str, Any], record: TrialRecord) -> str:
        objective, sign = self._study.objective, 1 if self._study.better == "max" else -1
        score = self._study.score(event)
        if score is not None and record.role != "confirm" and (self._best is None or sign * score > self._best[0]):
            self._best = sign * score, record.trial
        tail = f"  best {sign * self._best[0]:.4f} ({self._best[1]})" if self._best else ""
        over = f"  {event['reason']}" if event["reason"] else ""
        took = "".join(f"  {a['trial']} takes over {a['donor']}" for a in event["acts"] if a["act"] == "exploit")
        role = "" if record.role == "search" else f"{record.role} "
        folds = record.recipe.data.folds
        where = f"fold {event['fold']}/{folds} " if folds else ""
        done = f"{where}epoch {event['epoch']}/{record.recipe.max_epochs}"
        mean = f" (mean of {event['folds']}: {show(score)})" if folds and score is not None else ""
        return f"{role}trial {record.trial} {done} {objective} {show(event[objective])}{mean}{tail}{over}{took}"


def shared(event: Mapping[str, Any]) -> str:
    """What an event `share` of the journal says, as a sentence."""
    trials = event["trials"]
    return f"{f'{trials} trials share each GPU' if trials > 1 else 'each trial has a GPU to itself'}: {event['why']}"


def trials_table(study: Study, history: History, rows: int) -> Table:
    """The running trials, then the best of the others, at most `rows` lines."""
    searched, floor = list(study.space.domains), noise_floor(study, history)
    title = f"{study.name}: {study.objective}{floor.spread + ' by the seed alone' if floor and floor.sd else ''}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in (
        "trial",
        "state",
        "epoch",
        *(n.rpartition(".")[0][:7] + "." + n.rpartition(".")[2] for n in searched),
        "best",
        "last",
    ):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=True)
    best = history.best(study)
    sign = -1 if study.better == "max" else 1
    ranked = sorted(
        history.trials.values(),
        key=lambda r: (r.reason is not None, sign * (_best(r, study) if r.epochs else -sign * 1e9)),
    )
    for record in ranked[:rows]:
        style = "bold green" if best and record is best[0] else "" if record.reason is None else "dim"
        state = record.reason or ("waiting" if record.waiting or record.segment < 0 else "running")
        state = state if record.role == "search" else f"{record.role} {state}"
        last = show(record.last(study))
        now = record.current.flat()
        values = [show(now[name] if name in record.values else None) for name in searched]
        top = show(_best(record, study)) if record.epochs else ""
        age = f"{record.steps if record.recipe.data.folds else record.age}/{record.recipe.total_epochs}"
        table.add_row(record.trial, state, age, *values, top, last, style=style)
    if len(ranked) > rows:
        table.caption = f"and {len(ranked) - rows} more"
    return table


def progress_line(study: Study, history: History) -> Text:
    """How far the study is, in one line."""
    search, again = history.of("search", "control"), history.of("confirm")
    ended = sum(r.reason is not None for r in search)
    waiting = sum(r.waiting and r.reason is None for r in search)
    text = f"{ended} of {study.budget.trials} trials ended, {len(search) - ended - waiting} open"
    text += f", {waiting} waiting" if waiting else ""
    text += f"; {sum(r.reason is not None for r in again)} of {len(again)} confirming ones ended" if again else ""
    return Text(f"{text}; {sum(len(r.epochs) for r in history.trials.values())} epochs trained", style="cyan")


def summary(study: Study, history: History, folder: Path, seconds: float | None = None) -> RenderableType:
    """What a finished (or broken off) study comes to: best recipe, score, epochs saved, where the tables are."""
    best, floor = history.best(study), noise_floor(study, history)
    records = history.of("search", "control")
    facts = Table.grid(padding=(0, 2))
    if best:
        record, epoch = best
        spread = floor.spread if floor else ""
        facts.add_row(
            "best",
            _striking(
                f"{study.objective} = {study.score(epoch):.4f}{spread}", f"trial {record.trial}, {_when(study, epoch)}"
            ),
        )
        facts.add_row("recipe", _recipe_line(record, epoch["step"]))
    if floor:
        facts.add_row("noise", floor.sentence())
    took = f" in {seconds:.0f} s" if seconds else ""
    ended = history.terms[-1]["ended"] if history.terms else None
    facts.add_row(
        "trained",
        f"{len(history.trials)} trials, {sum(len(r.epochs) for r in history.trials.values())} epochs{took}"
        + (f"; the search ended with {ended}" if ended else ""),
    )
    if full := sum(r.recipe.total_epochs for r in records if r.reason == "stopped_scheduler"):
        saved = full - sum(len(r.epochs) for r in records if r.reason == "stopped_scheduler")
        everything = sum(r.recipe.total_epochs for r in records)
        facts.add_row(
            "saved", f"{study.scheduler.name.upper()} saved {saved} of {everything} epochs ({saved / everything:.0%})"
        )
    if history.of("control") and isinstance(study.scheduler, ASHA):
        facts.add_row("controls", would_have_stopped(study, history).sentence())
    if history.winners:
        label = history.winners[-1]["label"]
        found = history.trials.get(label)
        facts.add_row("winner", _striking(label, _recipe_line(found, found.steps) if found else ""))
    for line in (read_json(folder / "best" / "comparison.json") or {}).get("sentences", ()):
        facts.add_row("", line)
    if line := _health_line(history, best[0] if best else None):
        facts.add_row("health", line)
    failed = [r for r in history.trials.values() if r.reason in FAILED]
    for reason in sorted({r.reason for r in failed if r.reason}):
        some = [r for r in failed if r.reason == reason]
        facts.add_row(
            Text("failed", "red"),
            f"{len(some)} trials {reason} ({REASONS[reason]}), first {some[0].trial}: {printable(some[0].message)}",
        )
    facts.add_row("tables", str(folder / "tables"))
    grid = strength_grid(study, history)
    return Group(facts, "", grid) if grid else facts


def _striking(what: str, more: str) -> Text:
    return Text.assemble((what, "bold green"), f"  {more}")


def _health_line(history: History, best: TrialRecord | None) -> str:
    """How many trials got which verdict, and those of the best one."""
    counts = Counter(verdict.name for record in history.trials.values() for verdict in health.of_trial(record))
    line = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    own = health.names_of(health.of_trial(best)) if best else ""
    return f"{line} of {len(history.trials)} trials" + (f"; the best: {own}" if own else "") if line else ""


def _recipe_line(record: TrialRecord, step: int) -> str:
    """The searched values in force at a report, and whether they had been others before."""
    now = record.recipe_at(step).flat()
    line = "  ".join(f"{name} = {show(now[name])}" for name in record.values) or "the base recipe"
    return f"{line}  (changed on the way: schedule.json)" if record.exploits else line


def strength_grid(study: Study, history: History) -> Table | None:
    """The best score in each cell over the two strengths, if both were searched and enough trials ended."""
    axes = ("augment.strength", "regularize.strength")
    records = [r for r in history.trials.values() if r.epochs and all(isinstance(r.values.get(a), float) for a in axes)]
    if any(r.exploits for r in records):
        return None  # a population's values change while it trains: no trial stands in one cell
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
    best = record.best(study)
    return float("nan") if best is None else float(study.score(best) or 0)


def _when(study: Study, epoch: Mapping[str, Any]) -> str:
    if not study.recipe.data.folds:
        return f"epoch {epoch['epoch']}"
    sd = "" if epoch["folds_sd"] is None else f", which differ by {epoch['folds_sd']:.2g} (standard deviation)"
    return f"mean of {epoch['folds']} folds{sd}"
