"""Each writer is killed before every step that it asks of the file system, while a reader looks: old or new, no part.

A child process does the writing. What stands under a final name is read all the while, and once more when it is dead;
then its successor writes the same, and nothing half written is left. A writer of a new kind is a row of WRITERS.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch

from cvtune import best, checkpoint, durable, trained
from cvtune.durable import read_json, remove_leftovers, write_whole
from cvtune.errors import ConfigError
from cvtune.history import load
from cvtune.journal import Journal, read
from cvtune.recipe import Recipe
from cvtune.report import write as report
from cvtune.results import write_tables
from cvtune.study import Study
from cvtune.study_folder import LEFTOVERS

STUDY = Study(name="s", objective="val_accuracy", recipe=Recipe().replace({"max_epochs": 9}))
OLD, NEW = 1, 2  # what is written is of as many epochs
STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")  # as Python's audit events call them


MANY = 12  # steps that are tried one by one; of more, which repeat for each of several files, every third


class Writer(NamedTuple):
    """`write(folder, n)` writes of n epochs; `seen(folder)` says of how many is what stands there, None: it is not."""

    write: Callable[[Path, int], object]
    seen: Callable[[Path], list[int | None]]


def folder_with(storage: Path, epochs: int) -> Path:
    """A study of one trial as its journal tells it, and the checkpoint of its last epoch."""
    folder = storage / STUDY.name
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    told = {"created": 1.0, "task": "classify", "classes": ["a", "b"], "versions": {}, "command": []}
    write_whole(folder / "study.json", STUDY.to_json(told))
    journal = Journal(folder / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    proposed = {"role": "search", "label": "", "values": {}, "recipe": STUDY.recipe.model_dump(mode="json")}
    journal.append("trial", {"trial": "00000", "index": 0, "number": 0, "waiting": False, **proposed})
    for step in range(1, epochs + 1):
        append_epoch(journal, step)
    journal.close()
    return folder


def append_epoch(journal: Journal, step: int) -> None:
    scores = {"epoch": step, "seconds": 1.0, "val_accuracy": step / 10, "val_recall": [0.5, 0.5]}
    about = {"trial": "00000", "attempt": 1, "segment": 0, "step": step, "answer": "go", "acts": [], "reason": None}
    journal.append("epoch", {**about, **scores})


def save(folder: Path, epochs: int) -> None:
    """A checkpoint is never replaced: it has another name after another epoch, and none is written twice."""
    place = folder / "trials" / "00000" / "1" / "checkpoints" / str(epochs)
    if place.exists():
        return
    state = {"model": {"w": torch.full((300,), float(epochs))}, "stepper": {"ema": None}}
    checkpoint.save(place, state, {"step": epochs})


def saved(folder: Path) -> list[int | None]:
    found = [checkpoint.load(place) for place in checkpoint.newest(folder / "trials" / "00000")]
    assert all(set(state["model"]["w"].tolist()) == {numbers["step"]} for state, numbers in found)
    return [found[0][1]["step"] if found else None]


def note(folder: Path, epochs: int) -> None:
    """What a run does of which `epochs` are known; a successor has a term of its own and says what it saw."""
    files = sorted((folder / "journal").glob("*.jsonl"))
    known = [event for event in read(folder) if event["kind"] == "epoch"]
    if len(known) < epochs:
        journal = Journal(files[-1].with_name(f"{len(files) + 1:04d}.jsonl"))
        seen = len(list(read(folder)))
        journal.append("open", {"term": len(files) + 1, "saw_term": len(files), "saw": seen})
        append_epoch(journal, epochs)
        journal.close()


def noted(folder: Path) -> list[int | None]:
    steps = [event["step"] for event in read(folder) if event["kind"] == "epoch"]
    assert steps == list(range(1, len(steps) + 1))
    return [len(steps)]


def tables(folder: Path, epochs: int) -> None:
    """The journal has more epochs than `epochs` of them: what is not told yet comes with the next call."""
    history = load(folder)
    del history.trials["00000"].epochs[epochs:]
    write_tables(folder, history)


def tabled(folder: Path) -> list[int | None]:
    """Of each table by itself: they are five files, and derived."""
    rows = {name: pq.read_table(folder / "tables" / f"{name}.parquet") for name in ("epochs", "trials", "studies")}
    for name in ("decisions", "predictions"):
        assert pq.read_table(folder / "tables" / f"{name}.parquet").num_rows == 0
    return [rows["epochs"].num_rows, *rows["trials"]["epochs"].to_pylist(), *rows["studies"]["epochs"].to_pylist()]


def page(folder: Path, epochs: int) -> None:
    """The report without its drawing: what it shows is another test's."""
    with pytest.MonkeyPatch.context() as patched:
        findings = type("Found", (), {"surface": None})
        patched.setattr(report, "collect", lambda folder: type("Content", (), {"findings": findings}))
        patched.setattr(report, "_pictures", lambda *of: None)
        patched.setattr(report.stills, "draw", lambda content: {"surface": str(epochs).encode() * 200_000})
        patched.setattr(report, "render", lambda *of: str(epochs) * 200_000)
        report.write_report(folder)


def shown(folder: Path) -> list[int | None]:
    texts = [(folder / name).read_text() for name in (report.PAGE, "report/surface.png")]
    assert all(len(text) == 200_000 and len(set(text)) == 1 for text in texts)
    return [int(text[0]) for text in texts]


def model(folder: Path, epochs: int) -> None:
    """`best/` as of so many epochs; its weights are those of the one checkpoint that is there."""
    history = load(folder)
    del history.trials["00000"].epochs[epochs:]
    best.write_best(STUDY, folder, history)


def chosen(folder: Path) -> list[int | None]:
    """The file of weights and the numbers beside it."""
    told = read_json(folder / "best" / "metrics.json")
    try:
        weights = trained.read(folder / "best" / trained.FILE)
    except ConfigError:
        weights = None
    return [told and told["step"], weights and weights.study["step"]]


WRITERS = {
    "file": Writer(
        lambda folder, n: write_whole(folder / "x", str(n)), lambda folder: [int((folder / "x").read_text())]
    ),
    "journal": Writer(note, noted),
    "checkpoint": Writer(save, saved),
    "tables": Writer(tables, tabled),
    "report": Writer(page, shown),
    "best": Writer(model, chosen),
}


class Steps:
    """What a process asks of the file system, in order; it ends before the step of number `fatal`, from 1."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.taken = fatal, list[list[str]]()

    def take(self, *step: object) -> bool:
        """Note a step. Returns whether it is the fatal one; those that are no write end here."""
        self.taken.append([str(part) for part in step])
        fatal = len(self.taken) == self.fatal
        if fatal and step[0] != "write":
            os.kill(os.getpid(), signal.SIGKILL)
        return fatal

    def watch(self) -> None:
        """From here on; there is no way back, for which this is a child's to call."""
        fsync, write, exchanged = os.fsync, os.write, durable._exchanged

        def synced(handle: int) -> None:
            self.take("sync", Path(f"/proc/self/fd/{handle}").readlink())
            fsync(handle)

        def written(handle: int, content: bytes) -> int:
            if self.take("write"):
                write(handle, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(handle, content)

        def swapped(new: Path, old: Path) -> bool:
            self.take("os.rename", new, old)
            return exchanged(new, old)

        os.fsync, os.write, durable._exchanged = synced, written, swapped
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and (event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            self.take(event, *arguments[:2])


def killed(writer: Writer, folder: Path, fatal: int, seen: list[tuple[int | None, ...]]) -> list[list[str]] | None:
    """Write in a child that dies before its step `fatal`; the steps where it had fewer, None where it died."""
    told = folder.parent / "steps.json"
    child = os.fork()
    if not child:
        with suppress(BaseException):
            steps = Steps(fatal)
            steps.watch()
            writer.write(folder, NEW)
            steps.fatal = 0
            told.write_text(json.dumps(steps.taken))
        os._exit(0)
    until = time.monotonic() + 300
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        seen.append(tuple(writer.seen(folder)))
        time.sleep(0.002)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
    seen.append(tuple(writer.seen(folder)))
    if ended[1] == signal.SIGKILL and time.monotonic() < until:
        return None
    steps: list[list[str]] = json.loads(told.read_text())
    return steps


def reach_the_disk_in_order(steps: list[list[str]]) -> Iterator[str]:
    """What a power cut could tear: a file that takes its name before it is flushed, or in a folder that never is."""
    for number, (what, *arguments) in enumerate(steps):
        if what == "os.rename" and arguments[1].startswith("/") and not arguments[1].endswith(".tmp"):
            source, target = arguments
            if ["sync", source] not in steps[:number]:
                yield f"{source} is not flushed before it is {target}"
            if ["sync", str(Path(target).parent)] not in steps[number:]:
                yield f"the folder of {target} is not flushed"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads from /proc what a handle is of")
@pytest.mark.parametrize("name", [*WRITERS, "best without exchange"])
def test_a_killed_writer_leaves_the_old_or_the_new(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, allowed = WRITERS[name.partition(" ")[0]], {OLD, NEW}
    if name == "best without exchange":  # as on a network file system, where for a moment there is none
        monkeypatch.setattr(durable, "_exchanged", lambda new, old: False)
        allowed = {OLD, NEW, None}
    before = folder_with(tmp_path / "before", OLD if name == "journal" else NEW)
    if name.startswith("best"):
        save(before, NEW)
    writer.write(before, OLD)
    assert set(writer.seen(before)) == {OLD}
    steps, fatal, found = None, 0, list[tuple[int | None, ...]]()
    while steps is None:
        fatal += 1 if fatal < MANY else 3
        folder = shutil.copytree(before, tmp_path / str(fatal) / STUDY.name)
        steps = killed(writer, folder, fatal, found)
        assert {n for seen in found for n in seen} <= allowed, f"killed before step {fatal}"
        writer.write(folder, NEW)
        assert set(writer.seen(folder)) == {NEW}, f"the successor of what was killed before step {fatal}"
        remove_leftovers(folder, *LEFTOVERS, "trials/*/*/checkpoints")  # the last is what `Sweep.tidy` does
        assert not list(folder.rglob(".*.tmp"))
    assert fatal > 3 and not list(reach_the_disk_in_order(steps)), steps
