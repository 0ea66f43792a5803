"""The commands that write pages: report, compare. `cli.py` puts them on the line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cvtune.errors import ConfigError
from cvtune.looking import STUDIES, Storage, find, screen_console

if TYPE_CHECKING:
    from cvtune.report.compare import Compared

LIMIT_S = 300.0  # the end of a run waits no longer for its report


def report(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    storage: Storage = STUDIES,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for decoded images.", envvar="CVTUNE_CACHE")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Whether to draw what needs the study's images.")
    ] = True,
    wandb: Annotated[
        str,
        typer.Option(
            "--wandb",
            metavar="ENTITY/PROJECT",
            help="Make the report in this project of W&B instead: a draft that nobody but you sees before you publish "
            "it.",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --wandb: print what would be sent, as JSON, and send nothing.")
    ] = False,
) -> None:
    """Write a study's report as far as it is: report.html, one file to send on, and its figures as PNG."""
    from cvtune.report.write import write_report

    if dry_run and not wandb:
        raise ConfigError("--dry-run says what `--wandb ENTITY/PROJECT` would send: give that, too, or leave it out.")
    folder = find(name, storage)
    if wandb:
        _report_in_wandb(folder, wandb, dry_run)
    else:
        print(write_report(folder, cache, images))


def compare(
    names: Annotated[list[str], typer.Argument(help="Names of studies, or their folders.", metavar="STUDY STUDY...")],
    storage: Storage = STUDIES,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("compare.html"),
) -> None:
    """Compare studies: scores with intervals, surfaces side by side, recipes diffed. A table, and a page."""
    from cvtune.durable import write_whole
    from cvtune.report.compare import compare as compare_folders
    from cvtune.report.compare import render

    compared = compare_folders([find(name, storage) for name in names])
    console = screen_console()
    console.print(_scores(compared))
    console.print(_recipes(compared))
    for note in compared.notes:
        console.print(f"note: {note}", highlight=False)
    try:
        write_whole(output, render(compared))
    except OSError as error:
        raise ConfigError(f"-o {str(output)!r} cannot be written ({error.strerror}). Give another file.") from None
    print(output)


def _report_in_wandb(folder: Path, target: str, dry_run: bool) -> None:
    from cvtune.report.write import collect
    from cvtune.track import draft, publish, runs
    from cvtune.track.study_run import Material

    to = publish.place(target)
    if not dry_run:
        publish.require_key()
    content, of = collect(folder), Material.read(folder)
    made = draft.compose(of, content)
    if dry_run:
        print(draft.readable(made, str(to)))
        return
    published = publish.publish(made, to, runs.run_id(of.study, of.provenance, runs.STUDY), folder)
    for key in published.missing:
        print(f"note: W&B does not have the plot {key!r} yet: `cvtune report {folder}`, then `cvtune sync {folder}`.")
    print(published.url)


def write_aside(folder: Path, cache: Path | None) -> str:
    """Write a study's report in a process of its own, so that whatever becomes of it cannot harm the run.

    Returns:
        What to tell the user.
    """
    line = [sys.executable, "-m", "cvtune.cli", "report", str(folder.resolve())]
    line += ["--cache", str(cache)] if cache else []
    again = f"`cvtune report {folder}` writes it"
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"report: none was written ({error}); {again}."
    if done.returncode == 0:
        return f"report: {folder / 'report.html'}"
    lines = done.stderr.strip().splitlines()
    return f"report: none was written ({lines[-1] if lines else f'exit code {done.returncode}'}); {again}."


def _scores(compared: Compared) -> Table:
    table = Table("study", "metric", "score", "interval", "measured on", "trials", "epochs", "cost", box=None)
    for line in compared.lines:
        score = "" if line.score is None else f"{line.score:.4f}"
        counts = (f"{line.trials:,}", f"{line.epochs:,}")
        table.add_row(line.study, line.metric, score, line.interval, line.basis, *counts, line.cost)
    return table


def _recipes(compared: Compared) -> Table:
    table = Table("", *(line.study for line in compared.lines), box=None, title="where the best recipes differ")
    for one in compared.differences:
        table.add_row(one.name, *one.values)
    return table
