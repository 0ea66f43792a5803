"""The command line. Each command imports what it needs, so that `cvtune --help` and `cvtune list` are quick."""

from __future__ import annotations

import io
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cvtune import __version__, inspecting, reporting, study
from cvtune.advise import advise
from cvtune.durable import is_full
from cvtune.errors import ClusterError, ConfigError, CvtuneError
from cvtune.looking import (
    STUDIES,
    Settings,
    Storage,
    check_line,
    export,
    find,
    import_runs,
    list_studies,
    load,
    logs,
    screen_console,
    status,
    stop,
    sync,
)
from cvtune.signals import exit_code
from cvtune.using import best, predict

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Finds the sweet spot between augmentation and regularization for vision models.",
)

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder for decoded images, on a local disk. Default: $SLURM_TMPDIR, else $TMPDIR.",
        envvar="CVTUNE_CACHE",
    ),
]


class Resume(StrEnum):
    auto = "auto"
    must = "must"
    never = "never"


@app.command()
def run(
    target: Annotated[
        str,
        typer.Argument(
            help="WORKFLOW.py, STUDY.json, or images: a folder, a manifest (.csv, .parquet), a .zip, .tar, .parquet or "
            ".npz, digits, torchvision:NAME.",
            metavar="TARGET",
        ),
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
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html at the end.", envvar="CVTUNE_REPORT")
    ] = True,
) -> None:
    """Search: train trials of a workflow, a study, or the built-in study on a folder of images."""
    chosen = load(target)
    values = dict(study.parse_assignment(text) for text in settings or [])
    chosen = chosen.set({**values, **({"name": name} if name else {})})
    roots = code_roots(target)
    if warm is not None:
        chosen = _warmed(chosen, warm, storage)
    if dry_run:
        _dry_run(chosen, cache, roots)
        return
    _search(chosen, storage, cache, resume, roots, report)


@app.command()
def plan(
    target: Annotated[
        str,
        typer.Argument(help="What `cvtune run` is to be given: WORKFLOW.py, STUDY.json, or images.", metavar="TARGET"),
    ],
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Name of the study. Default: from the workflow or folder.")] = None,
    storage: Storage = STUDIES,
    cache: Cache = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Trials at once to plan for. Default: as many as fit here and now.")
    ] = None,
) -> None:
    """Say what a study will take: a few short trials are trained, the rest is reckoned. Exit code 2: over budget."""
    from cvtune import plan as plans

    values = dict(study.parse_assignment(text) for text in settings or [])
    chosen = load(target).set({**values, **({"name": name} if name else {})})
    made = plans.plan(chosen, storage, cache, code_roots(target), slots)
    console = screen_console()
    for title, sentence in made.lines():
        console.print(f"{title:<10}{sentence}", highlight=False, soft_wrap=True)
    plans.check_budget(chosen, made)


@app.command()
def fetch(
    target: Annotated[
        str,
        typer.Argument(
            help="What `cvtune run` is to be given: WORKFLOW.py, STUDY.json, or images such as torchvision:NAME.",
            metavar="TARGET",
        ),
    ],
    settings: Settings = None,
) -> None:
    """Download a study's published data and weights to where trials look for them: $CVTUNE_DATA and $TORCH_HOME.

    Run it where there is a network, such as a login node, before `cvtune run`, which downloads nothing.
    On a cluster set both to folders that all nodes share.
    """
    from cvtune.fetch import fetch as bring

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(exit_code(number)))  # half a download is removed
    chosen = load(target).set(dict(study.parse_assignment(text) for text in settings or []))
    notes: dict[str, str] = {}
    for item in bring(chosen):
        print(item, flush=True)
        notes[item.variable] = item.note()
    if not notes:
        print(f"study {chosen.name!r} needs nothing: neither a published data set nor published weights.")
    for note in filter(None, notes.values()):
        print(f"note: {note}", file=sys.stderr)


@app.command()
def preview(
    data: Annotated[
        str,
        typer.Argument(
            help="Images: a folder, a manifest, a .zip, .tar, .parquet or .npz, digits, torchvision:NAME; or a "
            "WORKFLOW.py.",
            metavar="DATA",
        ),
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
    chosen = load(data).set(values)
    sheet = draw_preview(chosen, images, [round(k / (columns - 1), 3) for k in range(columns)], seed, cache)
    try:
        sheet.save(output)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"-o {str(output)!r} cannot be written ({error}). Give a .png file in a folder that exists."
        ) from None
    print(f"{output}: {images} images x {columns} strengths")


@app.command()
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(help="Rehearse it on every node too: WORKFLOW.py, STUDY.json, or images.", metavar="TARGET"),
    ] = None,
    settings: Settings = None,
    storage: Annotated[
        Path | None,
        typer.Option("--storage", help="Folder of the studies that all nodes must share.", envvar="CVTUNE_STORAGE"),
    ] = None,
    cache: Cache = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for Ray, and for all nodes of the Slurm job to join it.")
    ] = 0,
) -> None:
    """Check the cluster that RAY_ADDRESS names, or this machine: one line per check, exit code 4 if one is red."""
    if target is None and settings:
        raise ConfigError("--set changes a study, but no TARGET was given. Name one: `cvtune doctor digits --set ...`.")
    chosen = load(target).set(dict(map(study.parse_assignment, settings or []))) if target else None
    from cvtune.doctor import examine

    console, red = screen_console(), []
    for check in examine(chosen, storage, cache, wait, code_roots(target or "")):
        console.print(check_line(check), soft_wrap=True, highlight=False)
        red += [check.name] if check.state == "red" else []
    if red:
        raise ClusterError(f"not in order: {', '.join(red)}. The remedy stands in each red line.")


def code_roots(target: str) -> tuple[str, ...]:
    """Folders in which workers look for the user's own modules: that of the workflow, and this one."""
    beside = [str(Path(target).resolve().parent)] if target.endswith(".py") else []
    return tuple(dict.fromkeys([*beside, str(Path.cwd())]))


def _search(
    chosen: study.Study, storage: Path, cache: Path | None, resume: Resume, roots: tuple[str, ...], report: bool
) -> None:
    """Run a study, show it meanwhile, and say at the end what it came to."""
    from cvtune import engine
    from cvtune.screen import Screen, summary

    console = screen_console()
    with Screen(chosen, console) as screen:

        def finish(folder: Path) -> None:
            if report:
                screen.say("writing the report")
                screen.say(reporting.write_aside(folder, cache))

        heard = (screen, screen.say, screen.settle, finish)
        try:
            outcome = engine.run_study(chosen, storage, cache, resume.value, roots, *heard)
        except engine.Interrupted as interrupted:
            raise typer.Exit(exit_code(interrupted.number)) from None
    if not outcome.seconds:
        console.print(
            f"study {chosen.name!r} in {storage} is complete; nothing to do. "
            "More trials: --set budget.trials=N; anew: --name."
        )
    console.print(summary(outcome.study, outcome.history, outcome.folder, outcome.seconds))
    from cvtune.plan import compared

    if told := compared(outcome.study, outcome.folder, outcome.history):
        console.print(told, highlight=False)
    if outcome.signal is not None:
        # No report is written: whoever ended the run waits for this process, and none may be left behind.
        console.print("interrupted; the same command again takes it up where it was.")
        raise typer.Exit(exit_code(outcome.signal))


def _warmed(chosen: study.Study, older: str, storage: Path) -> study.Study:
    """`chosen` with what an older study learned; what it took when it first began, if it is taken up again."""
    own = storage / chosen.name / "study.json"
    if own.is_file():
        begun = study.read(own)
        chosen = chosen.settled(begun.objective)
        return chosen.model_copy(update={"points": begun.points, "prior": begun.prior})
    from cvtune.warm import warm_start

    chosen, notices = warm_start(chosen, find(older, storage))
    for notice in notices:
        print(notice)
    return chosen


def _dry_run(chosen: study.Study, cache: Path | None, roots: tuple[str, ...]) -> None:
    from cvtune import preflight

    prepared = preflight.finish(preflight.start(chosen, cache, roots))
    chosen = chosen.settled(prepared.objective)
    print(chosen.model_dump_json(indent=2))
    print(f"images: {prepared.images}, classes: {', '.join(prepared.classes)}", file=sys.stderr)
    for notice in prepared.notices:
        print(notice, file=sys.stderr)
    noise = chosen.noise_seeds if chosen.budget.trials else 0
    again = chosen.most_confirmed * chosen.confirm.seeds
    print(
        f"all checks passed; at most {chosen.budget.trials} trials, {noise} of the default recipe to measure noise, "
        f"and {again} to confirm: {(chosen.budget.trials + noise + again) * chosen.recipe.total_epochs} epochs. "
        "Nothing was trained.",
        file=sys.stderr,
    )


app.command("list")(list_studies)
app.command("import")(import_runs)
for _command in (
    inspecting.check,
    inspecting.init,
    inspecting.lr,
    status,
    logs,
    stop,
    export,
    sync,
    reporting.report,
    reporting.compare,
    best,
    predict,
    advise,
):
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"cvtune {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors of ours become one paragraph and their exit code."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except CvtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if not is_full(error):
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
