"""`cvtune sync`: one syncer at a time, on any machine that sees the study's folder; and what it would send."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from cvtune import study
from cvtune.errors import CvtuneError
from cvtune.track import cursor, launch, runs, study_run
from cvtune.track.client import end_service
from cvtune.track.priority import give_way
from cvtune.track.study_run import Material
from cvtune.track.syncer import TRY, BeginAnew, Syncer


class _Stopped(BaseException):
    """A signal came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def sync(folder: Path, watch: bool, mode: str) -> None:
    """Deliver a study to W&B and end this process: with 0 once W&B has everything.

    Args:
        watch: follow the study until nobody runs it any more.
        mode: one of `Tracking.mode`, or "" for what the study says. A study with "off" or "auto" is delivered online.

    Raises:
        ConfigError: online without a key.
        CvtuneError: the journal cannot be read.
    """
    chosen = launch.mode_for_sync(mode or study.read(folder / "study.json").tracking.mode)
    lock = cursor.take_lock(folder)
    if lock is None:
        print(f"another syncer is at study {folder.name!r}; nothing to do.")
        return
    give_way(beside_training=watch)
    syncer = Syncer(folder, chosen)
    try:
        with _stoppable():
            if watch:
                syncer.follow()
            else:
                syncer.deliver(last=True)
        syncer.close()
    except BeginAnew as again:
        _execute_again(folder, chosen, lock, again.number)
    except CvtuneError as error:
        _leave(folder, syncer, f"error: {error}", error.exit_code)
    except _Stopped as stopped:
        _leave(folder, syncer, "stopped", 130 if stopped.number == signal.SIGINT else 75)
    whole = f"all {syncer.count()[0]} runs of study {folder.name!r}"
    if chosen == "online":
        print(f"W&B has {whole}")
    else:
        print(f"{folder / 'wandb'} holds {whole}; to the server: `cvtune sync {folder} --mode online`")


def list_leaving(folder: Path) -> Iterator[str]:
    """What a syncer would send, line by line: runs, columns, tables, plots, and files with their sizes."""
    material = Material.read(folder)
    settings, found = material.study, material.history
    large = runs.is_large(settings, found)
    logged = [r for r in found.trials.values() if (r.epochs or r.reason) and runs.has_run(settings, r, large)]
    own, classes = study_run.describe(material), runs.shown(material.provenance.get("classes") or ())
    tracking = settings.tracking
    entity = tracking.entity or os.environ.get("WANDB_ENTITY") or "your default entity"
    yield f"to project {tracking.project!r} of {entity}"
    yield f"group {own.group!r}, tags {', '.join(own.tags)}"
    yield f"{len(logged)} runs of trials with {sum(len(r.epochs) for r in logged)} reports"
    if left := len(found.trials) - len(logged):
        yield f"{left} further trials as rows of the table `trials` only"
    if pictures := [row.strip for r in logged for row in runs.rows(settings, r, folder) if row.strip]:
        yield f"{len(pictures)} strips of validation images, {sum(path.stat().st_size for path in pictures)} bytes"
    for record in logged[:1]:
        begun = runs.of_trial(settings, material.provenance, record)
        yield f"  named like: {begun.name}"
        yield f"  config: {', '.join(begun.config)}"
        first = next((row.values for row in runs.rows(settings, record, folder, 0, classes)), {})
        yield f"  columns: step, {', '.join(first)}"
        yield f"  summary: {', '.join(runs.summary(settings, record, classes))}, test_*"
    yield f"1 run of the study; config: {', '.join(own.config)}; summary: {', '.join(study_run.summary(material))}"
    for name, table in study_run.tables(material).items():
        yield f"  table {name}: {len(table.rows)} rows of {', '.join(table.columns)}"
    yield from (f"  plot {name}" for name in study_run.plots(material))
    for parcel in study_run.parcels(material):
        yield f"  artifact {parcel.name} ({parcel.type}), {sum(parcel.sizes.values())} bytes"
        yield from (f"    {name}, {size} bytes" for name, size in parcel.sizes.items())
    if tracking.private:
        yield "private: nothing about single images leaves, nor do weights"
    else:
        yield "strips show images, and tables name single ones; tracking.private=true keeps both here"


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _leave(folder: Path, syncer: Syncer, why: str, code: int) -> None:
    """End at once: W&B's client would wait for what cannot be delivered."""
    total, missing = syncer.count()
    left = f"{missing} of {total} runs of study {folder.name!r} are not delivered"
    print(f"{why}\n{left}; `cvtune sync {folder}` goes on from there")
    sys.stdout.flush()
    end_service(folder)
    os._exit(code)


def _execute_again(folder: Path, mode: str, lock: int, number: int) -> None:
    end_service(folder)
    cursor.hand_on(lock)
    os.environ[TRY] = str(number)
    sys.stdout.flush()
    arguments = [sys.executable, "-m", "cvtune.track", str(folder), "--watch", "--mode", mode]
    os.execv(sys.executable, arguments)
