"""The command line. Each command imports what it needs, so that `cvtune --help` and `cvtune list` are quick."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cvtune import __version__, study
from cvtune.errors import ConfigError, CvtuneError, did_you_mean

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Finds the sweet spot between augmentation and regularization for vision models.",
)

Storage = Annotated[Path, typer.Option("--storage", help="Folder that holds the studies.", envvar="CVTUNE_STORAGE")]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder for decoded images, on a local disk. Default: $SLURM_TMPDIR, else $TMPDIR.",
        envvar="CVTUNE_CACHE",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Set any value by its dotted name; a searched one leaves the space."
    ),
]
STUDIES = Path("studies")


class Resume(StrEnum):
    auto = "auto"
    must = "must"
    never = "never"


@app.command()
def run(
    target: Annotated[
        str,
        typer.Argument(help="WORKFLOW.py, STUDY.json, or images: a folder, an .npz file, digits.", metavar="TARGET"),
    ],
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Name of the study. Default: from the workflow or folder.")] = None,
    storage: Storage = STUDIES,
    cache: Cache = None,
    resume: Annotated[
        Resume, typer.Option(help="Take up a study of this name: if there is one, only then, or not at all.")
    ] = Resume.auto,
    warm: Annotated[
        str | None,
        typer.Option(
            "--warm-start",
            metavar="STUDY",
            help="Learn from an earlier study: its best recipes are tried first, the searcher knows its scores.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check images and both ends of every domain, show the study, train nothing."),
    ] = False,
) -> None:
    """Search: train trials of a workflow, a study, or the built-in study on a folder of images."""
    chosen = study.load(target)
    values = dict(study.parse_assignment(text) for text in settings or [])
    chosen = chosen.set({**values, **({"name": name} if name else {})})
    roots = tuple(
        dict.fromkeys([*([str(Path(target).resolve().parent)] if target.endswith(".py") else []), str(Path.cwd())])
    )
    if warm is not None:
        chosen = _warmed(chosen, warm, storage)
    if dry_run:
        _dry_run(chosen, cache, roots)
        return
    from cvtune import engine
    from cvtune.screen import Screen, summary

    console = screen_console()
    with Screen(chosen, console) as screen:
        try:
            outcome = engine.run_study(chosen, storage, cache, resume.value, roots, listen=screen, say=screen.say)
        except engine.Interrupted as interrupted:
            raise typer.Exit(exit_code(interrupted.number)) from None
    if not outcome.seconds:
        console.print(
            f"study {chosen.name!r} in {storage} is complete; nothing to do. "
            "More trials: --set budget.trials=N; anew: --name."
        )
    console.print(summary(chosen, outcome.history, outcome.folder, outcome.seconds))
    if outcome.signal is not None:
        console.print("interrupted; the same command again takes it up where it was.")
        raise typer.Exit(exit_code(outcome.signal))


@app.command()
def preview(
    data: Annotated[
        str, typer.Argument(help="Images: a folder, an .npz file, digits; or a WORKFLOW.py.", metavar="DATA")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path("preview.png"),
    settings: Settings = None,
    images: Annotated[int, typer.Option(min=1, max=64, help="Rows: images, spread over the classes.")] = 6,
    columns: Annotated[int, typer.Option(min=2, max=21, help="Columns: strengths from 0 to 1.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the augmentation shown.")] = 0,
    cache: Cache = None,
) -> None:
    """Draw a contact sheet: your images (rows) at augmentation strengths 0 to 1 (columns)."""
    from cvtune.report.sheet import draw_preview

    values = dict(study.parse_assignment(text) for text in settings or [])
    chosen = study.load(data).set(values)
    sheet = draw_preview(chosen, images, columns, seed, cache)
    try:
        sheet.save(output)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"-o {str(output)!r} cannot be written ({error}). Give a .png file in a folder that exists."
        ) from None
    print(f"{output}: {images} images x {columns} strengths")


@app.command("list")
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
        score = f"{best[1][settings.objective]:.4f}{floor.spread if floor else ''}" if best else ""
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name of a study, or its folder.", metavar="STUDY")],
    to: Annotated[str, typer.Option("--to", metavar="DIR_OR_URL", help="Folder, or a URL such as s3://bucket/path.")],
    storage: Storage = STUDIES,
) -> None:
    """Write a study's tables and definition to a folder or a URL."""
    from cvtune.results import export as export_tables

    for file in export_tables(find(name, storage), to):
        print(file)


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
    """A console as wide as the terminal; in a file or a pipe wide enough for the tables."""
    return Console(record=record, width=None if sys.stdout.isatty() else 140)


def exit_code(signal_number: int) -> int:
    """130 after SIGINT, 75 (try again) after SIGTERM and SIGUSR1."""
    return 130 if signal_number == 2 else 75


def _warmed(chosen: study.Study, older: str, storage: Path) -> study.Study:
    """`chosen` with what an older study learned; what it took when it first began, if it is taken up again."""
    own = storage / chosen.name / "study.json"
    if own.is_file():
        begun = study.read(own)
        return chosen.model_copy(update={"points": begun.points, "prior": begun.prior})
    from cvtune.warm import warm_start

    chosen, notices = warm_start(chosen, find(older, storage))
    for notice in notices:
        print(notice)
    return chosen


def _dry_run(chosen: study.Study, cache: Path | None, roots: tuple[str, ...]) -> None:
    from cvtune import preflight

    prepared = preflight.finish(preflight.start(chosen, cache, roots))
    print(chosen.model_dump_json(indent=2))
    print(f"images: {prepared.images}, classes: {', '.join(prepared.classes)}", file=sys.stderr)
    for notice in prepared.notices:
        print(notice, file=sys.stderr)
    noise = chosen.noise_seeds if chosen.budget.trials else 0
    again = (chosen.confirm.top + len(chosen.candidates) + 2) * chosen.confirm.seeds
    again = again if chosen.confirm.top or chosen.candidates else 0
    print(
        f"all checks passed; at most {chosen.budget.trials} trials, {noise} of the default recipe to measure noise, "
        f"and {again} to confirm: {(chosen.budget.trials + noise + again) * chosen.recipe.max_epochs} epochs. "
        "Nothing was trained.",
        file=sys.stderr,
    )


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"cvtune {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors of ours become one paragraph and their exit code."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        app()
    except CvtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: the disk is full{where}. What was written is whole. "
            "Free some space; then the same command goes on.",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
