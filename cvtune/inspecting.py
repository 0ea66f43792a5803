"""The commands that look at images before a study: check, init, lr. `cli.py` puts them on the line."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from cvtune import study
from cvtune.errors import ConfigError, DataError
from cvtune.looking import Settings, check_line, load, screen_console
from cvtune.sections import Source

if TYPE_CHECKING:
    from cvtune.checks import Check
    from cvtune.data.inspect import Facts
    from cvtune.ranges import Advice
    from cvtune.rates import Curve
    from cvtune.space import LogUniform

Data = Annotated[
    str,
    typer.Argument(
        help="Images: a folder, a manifest, a .zip, .tar, .parquet or .npz, digits, torchvision:NAME.", metavar="DATA"
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder for decoded images, on a local disk.", envvar="CVTUNE_CACHE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def check(data: Data, settings: Settings = None, as_json: AsJson = False, cache: Cache = None) -> None:
    """Look at a data set: what it holds, what is wrong with it, which ranges follow. Exit code 3: it cannot be used.

    Headers of all images are read, a sample is decoded; nothing is written but what is remembered of masks.
    """
    from cvtune.data_checks import checks
    from cvtune.ranges import advise

    chosen = load(data).set(dict(map(study.parse_assignment, settings or [])))
    facts = look(chosen.data, cache)
    advice = advise(facts)
    room = _room(facts, advice, cache, chosen.resources.cache_bytes)
    found = checks(facts, chosen.data.max_corrupt, *room)
    if as_json:
        ranges = [{"name": one.name, "value": one.code, "reason": one.reason} for one in advice]
        print(json.dumps({"facts": asdict(facts), "checks": [asdict(c) for c in found], "ranges": ranges}, indent=2))
    else:
        console = screen_console()
        for line in map(check_line, found):
            console.print(line, soft_wrap=True, highlight=False)
        for notice in facts.notices:
            console.print(f"note    {notice}", soft_wrap=True, highlight=False)
        console.print("\nwhat follows for the search (`cvtune init` writes it as a workflow):", highlight=False)
        for one in advice:
            console.print(f"  {one.name:<20}{one.code:<27} {one.reason}", soft_wrap=True, highlight=False)
    _refuse(data, found)


def init(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; it must not be there yet.")] = Path(
        "workflow.py"
    ),
    settings: Settings = None,
    cache: Cache = None,
) -> None:
    """Write a workflow for a data set: what `cvtune check` found, as ranges with their reasons.

    What is not in order is said; images that cannot be used get no workflow (exit code 3). --set data.NAME=VALUE says
    how they are read, and is written down; whatever else a study sets is for the file itself.
    """
    from cvtune.data_checks import checks
    from cvtune.ranges import advise, workflow

    if output.exists():
        raise ConfigError(f"-o {str(output)!r} is there already and is not overwritten. Name another file.")
    values = dict(map(study.parse_assignment, settings or []))
    valid = [f"data.{field}" for field in Source.model_fields if field != "source"]  # that is DATA
    for name in values:
        if name not in valid:
            asked = ", ".join(valid)
            raise ConfigError(f"--set {name}: init asks only how the images are read ({asked}). Set it in {output}.")
    chosen = load(data).set(values)
    facts = look(chosen.data, cache)
    room = _room(facts, advise(facts), cache, chosen.resources.cache_bytes)
    found = checks(facts, chosen.data.max_corrupt, *room)
    for line in found:
        if line.state != "ok":
            screen_console().print(check_line(line), soft_wrap=True, highlight=False)
    _refuse(data, found)
    try:
        output.write_text(workflow(facts, str(output), chosen.data), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"-o {str(output)!r} cannot be written ({error.strerror}). Give another file.") from None
    print(f"{output}: try `cvtune run {output} --dry-run`, then without --dry-run.")


def _refuse(data: str, found: Sequence[Check]) -> None:
    """Raises DataError if a line is red."""
    if red := [line.name for line in found if line.state == "red"]:
        raise DataError(f"{data}: not in order: {', '.join(red)}. The remedy stands in each red line.")


def lr(
    target: Annotated[
        str,
        typer.Argument(help="What `cvtune run` is to be given: WORKFLOW.py, STUDY.json, or images.", metavar="TARGET"),
    ],
    settings: Settings = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path("lr.png"),
    steps: Annotated[int, typer.Option(min=20, max=100_000, help="Optimizer steps from the lowest rate on.")] = 200,
    as_json: AsJson = False,
    cache: Cache = None,
) -> None:
    """Measure which learning rates a search should try: one model, a rate that rises step by step (Smith 2017).

    The model, images, augmentation, batches and loss are the study's own; each optimizer that it searches is tested.
    """
    from cvtune import rates as testing
    from cvtune.data import cache_folder, open_dataset
    from cvtune.report.rate_plot import draw_rates

    chosen = load(target).set(dict(map(study.parse_assignment, settings or [])))
    recipe, threads = chosen.recipe, os.cpu_count() or 1
    _check_writable(output)
    data = open_dataset(chosen.data, recipe.largest, cache_folder(cache), chosen.resources.cache_bytes, threads)
    found: dict[str, Tested] = {}
    with _progress() as progress:
        for name in testing.optimizers(chosen):
            curve = testing.range_test(recipe.replace({"optim.name": name}), data, steps, progress)
            found[name] = Tested(curve, curve.suggestion())
    drawn = {name: (one.curve.rates, one.curve.losses, one.curve.smoothed) for name, one in found.items()}
    output.write_bytes(draw_rates(drawn, {name: (one.range.low, one.range.high) for name, one in found.items()}))
    if as_json:
        print(json.dumps({name: one.to_json() for name, one in found.items()}, indent=2))
        return
    for name, one in found.items():
        screen_console().print(_rate_table(name, one))
    print(f"{output}: the plot. For the space of a workflow:\n\n    {_as_code(found)}")


class Tested(NamedTuple):
    """What a range test of one optimizer came to."""

    curve: Curve
    range: LogUniform

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a loss that is not finite is null."""
        losses, smoothed = (
            [value if math.isfinite(value) else None for value in values]
            for values in (self.curve.losses, self.curve.smoothed)
        )
        span = {"low": self.range.low, "high": self.range.high}
        return {**span, "rates": self.curve.rates, "losses": losses, "smoothed": smoothed}


ROWS = 12  # of the table of rates


def _rate_table(name: str, tested: Tested) -> Table:
    """Some steps of a range test, evenly spread: rate, smoothed loss, and which lie in the suggested range."""
    table = Table(f"rate ({name})", "smoothed loss", "", box=None)
    curve = tested.curve
    for step in sorted({round(k * (len(curve.rates) - 1) / (ROWS - 1)) for k in range(ROWS)} | {curve.turn}):
        told = "suggested" if tested.range.contains(curve.rates[step]) else ""
        table.add_row(
            f"{curve.rates[step]:.2e}", f"{curve.smoothed[step]:.4f}", "least" if step == curve.turn else told
        )
    return table


def _as_code(found: dict[str, Tested]) -> str:
    """The domain of optim.lr as Python source: one per optimizer where there are several."""
    codes = {name: f"LogUniform({one.range.low:g}, {one.range.high:g})" for name, one in found.items()}
    if len(codes) == 1:
        return f'"optim.lr": {next(iter(codes.values()))},'
    cases = ", ".join(f'"{name}": {code}' for name, code in codes.items())
    return f'"optim.lr": PerChoice("optim.name", {{{cases}}}),'


def _check_writable(output: Path) -> None:
    """Refuses, before anything takes long, a file that cannot be written at the end."""
    if output.suffix.lower() != ".png" or not output.absolute().parent.is_dir() or output.is_dir():
        raise ConfigError(f"-o {str(output)!r} cannot be written. Give a .png file in a folder that exists.")


def look(source: Source, cache: Path | None) -> Facts:
    """The facts of a data set, with progress on standard error.

    Raises:
        DataError: the images cannot be read as a data set.
    """
    from cvtune.data import cache_folder, read_source
    from cvtune.data.inspect import inspect

    workers = os.cpu_count() or 1
    with _progress() as progress:
        return inspect(read_source(source, cache_folder(cache), workers), source.source, workers, progress)


def _room(facts: Facts, advice: tuple[Advice, ...], cache: Path | None, limit: int | None) -> tuple[int, int]:
    """Bytes that the decoded images will take at the size that is advised, and that there are for them."""
    from cvtune.data import cache_folder
    from cvtune.data.cache import allowance

    size = next(one.value for one in advice if one.name == "data.image_size")
    assert isinstance(size, int)
    side = min(round(1.5 * size), facts.shorter[1])
    aspect = max(1.0, facts.longer[1] / facts.shorter[1])
    return round(facts.total * side * side * aspect * facts.pixel_bytes), allowance(cache_folder(cache), limit)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is done, on a terminal; else nothing."""
    console = Console(stderr=True, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def heard(what: str, done: int, total: int) -> None:
            tasks[what] = tasks[what] if what in tasks else bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield heard
