"""The commands that look at studies or stop them: list, status, logs, stop, export, sync.

`cli.py` puts them on the line.
"""

from __future__ import annotations

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvtune import study
from cvtune.checks import Check
from cvtune.errors import ConfigError, CvtuneError, did_you_mean

Storage = Annotated[Path, typer.Option("--storage", help="Folder that holds the studies.", envvar="CVTUNE_STORAGE")]
STUDIES = Path("studies")
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Set any value by its dotted name; a searched one leaves the space."
    ),
]
LOOKED_INTO = (".npz", ".parquet", ".zip", ".tar")  # targets whose names do not say whether they hold masks


def list_studies(storage: Storage = STUDIES) -> None:
    """List the studies of a storage folder."""
    from cvtune import history as histories
    from cvtune import lease
    from cvtune.noise import noise_floor

    found = sorted(path.parent for path in storage.glob("*/study.json"))
    if not found:
        print(f"no studies in {storage}. Start one with `cvtune run`, or name another folder with --storage.")
        return
    table = Table("study", "state", "trials", "epochs", "objective", "best", box=None)
    for folder in found:
        settings, history = study.read(folder / "study.json"), histories.load(folder)
        owner = lease.owner(folder)
        state = "running" if owner and lease.is_alive(owner) else "complete" if history.complete else "interrupted"
        best = history.best(settings)
        floor = noise_floor(settings, history)
        score = f"{settings.score(best[1]):.4f}{floor.spread if floor else ''}" if best else ""
        trained = sum(len(r.epochs) for r in history.trials.values())
        table.add_row(
            settings.name,
            state,
            f"{len(history.of('search', 'control'))}/{settings.budget.trials}",
            str(trained),
            settings.objective,
            score,
        )
    screen_console().print(table)


def status(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    storage: Storage = STUDIES,
    rows: Annotated[int, typer.Option(min=1, help="Trials to show.")] = 40,
    svg: Annotated[Path | None, typer.Option(help="Also write what is shown as an SVG picture.")] = None,
) -> None:
    """Show the trials of a study and the best recipe so far."""
    from cvtune import history as histories
    from cvtune import lease
    from cvtune.screen import progress_line, summary, trials_table

    folder = find(name, storage)
    settings, history = study.read(folder / "study.json"), histories.load(folder)
    owner = lease.owner(folder)
    console = screen_console(record=svg is not None)
    console.print(trials_table(settings, history, rows))
    console.print(progress_line(settings, history))
    if owner and lease.is_alive(owner):
        console.print(
            f"running: process {owner['pid']} on {owner['host']}, "
            f"last sign of life {time.time() - owner['heartbeat']:.0f} s ago"
        )
    console.print(summary(settings, history, folder))
    if svg is not None:
        console.save_svg(str(svg), title=f"cvtune status {settings.name}")


def logs(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    trial: Annotated[
        str | None,
        typer.Argument(help="Trial to show what it printed; none: the events of the study.", metavar="TRIAL"),
    ] = None,
    storage: Storage = STUDIES,
) -> None:
    """Print what a trial printed, or the events of the study as plain lines."""
    from cvtune import history as histories
    from cvtune import journal
    from cvtune.screen import Lines

    folder = find(name, storage)
    settings = study.read(folder / "study.json")
    if trial is None:
        history, as_line = histories.History(), Lines(settings)
        for event in journal.read(folder):
            history.apply(event)
            if line := as_line(event, history):
                print(line)
        return
    wanted = trial.zfill(5)
    files = sorted((folder / "trials" / wanted).glob("*/log.txt"), key=lambda p: int(p.parent.name))
    if not files:
        known = [path.name for path in (folder / "trials").glob("*")]
        raise ConfigError(f"trial {trial!r} of study {settings.name!r} has no log. {did_you_mean(wanted, known)}")
    for file in files:
        print(f"--- attempt {file.parent.name}")
        print(file.read_text(), end="")


def stop(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    storage: Storage = STUDIES,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it has ended.")] = 60,
) -> None:
    """End a running study in good order; `cvtune run` takes it up again. From any machine that sees its folder."""
    from cvtune import lease
    from cvtune.durable import write_whole

    folder = find(name, storage)
    owner = lease.owner(folder)
    if owner is None or not lease.is_alive(owner):
        print(f"study {folder.name!r} is not running.")
        return
    write_whole(folder / lease.STOP_REQUEST, json.dumps({"format": 1, "asked": time.time()}))
    until = time.monotonic() + wait
    while time.monotonic() < until:
        current = lease.owner(folder)
        if current is None or not lease.is_alive(current):
            print(f"study {folder.name!r} ended.")
            return
        time.sleep(0.2)
    raise CvtuneError(
        f"study {folder.name!r} was asked to stop but still runs after {wait:g} s "
        f"(process {owner['pid']} on {owner['host']}). Wait longer with --wait, or end that process."
    )


def export(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    to: Annotated[str, typer.Option("--to", metavar="DIR_OR_URL", help="Folder, or a URL such as s3://bucket/path.")],
    storage: Storage = STUDIES,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="parquet; csv; or optuna, the search as an SQLite file that Optuna and its dashboard open.",
        ),
    ] = "parquet",
) -> None:
    """Write a study's tables and definition to a folder or a URL, also for other tools."""
    from cvtune.exports import export as write

    for file in write(find(name, storage), to, form):
        print(file)


def import_runs(
    source: Annotated[
        str,
        typer.Argument(
            help="A CSV or Parquet file with a row per run, or per report; or a project of W&B as ENTITY/PROJECT.",
            metavar="RUNS",
        ),
    ],
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="OURS=THEIRS", help="What a name of theirs means, such as optim.lr=learning_rate; /100."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study. Default: from the file or project.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="Metric to compare by. Default: the first that is there.")
    ] = None,
    storage: Storage = STUDIES,
) -> None:
    """Make a study of runs that you already have, to look at and to warm-start from. Nothing is trained."""
    from cvtune import imports

    made = imports.import_runs(source, maps or [], storage, name, objective)
    for line in made.lines:
        print(line)
    name = made.study.name
    print(f"{made.folder}: see `cvtune status {name}`; to learn from it, `cvtune run ... --warm-start {name}`.")


class SyncMode(StrEnum):
    online = "online"
    offline = "offline"


def sync(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    storage: Storage = STUDIES,
    watch: Annotated[bool, typer.Option("--watch", help="Follow a running study until it has ended.")] = False,
    mode: Annotated[
        SyncMode | None,
        typer.Option(help="To the server, or into W&B's own files. Default: the study's tracking.mode, else online."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would leave: runs, columns, artifacts with sizes.")
    ] = False,
) -> None:
    """Send a study to Weights & Biases: what is not there yet, each report once. Wherever its folder is seen."""
    from cvtune.track import command

    folder = find(name, storage).resolve()
    if dry_run:
        for line in command.list_leaving(folder):
            print(line)
        return
    command.sync(folder, watch, mode.value if mode else "")


def find(name: str, storage: Path) -> Path:
    """The folder of a study given by name or by path.

    Raises:
        ConfigError: there is none.
    """
    for folder in (storage / name, Path(name)):
        if (folder / "study.json").is_file():
            return folder
    known = [path.parent.name for path in storage.glob("*/study.json")]
    raise ConfigError(f"there is no study {name!r} in {storage}. {did_you_mean(name, known)}")


def screen_console(record: bool = False) -> Console:
    """A console as wide as the terminal; in a file or a pipe wide enough for the tables. Brackets in a text are text:
    names of classes and files have them."""
    return Console(record=record, markup=False, width=None if sys.stdout.isatty() else 140)


def check_line(check: Check) -> Text:
    """One line: state, name, what was found, what to do."""
    color = {"ok": "green", "red": "bold red"}.get(check.state, "yellow")
    remedy = f". {check.remedy}." if check.remedy and check.state != "ok" else ""
    return Text.assemble((f"{check.state:<8}", color), f"{check.name:<18}{check.found.rstrip('.')}{remedy}")


def load(target: str) -> study.Study:
    """The study that a target names; for images with masks, also those in archives, one that segments."""

    def shows_masks(source: str) -> bool:
        from cvtune.data.sources import shows_masks as look

        return (Path(source).is_dir() or source.lower().endswith(LOOKED_INTO)) and look(source)

    return study.load(target, shows_masks)
