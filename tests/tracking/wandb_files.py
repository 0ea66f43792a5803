"""Reads W&B's offline files back: what a run was told, from its `.wandb` file alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER = 32768, 7
FULL, LAST = 1, 4  # kinds of a chunk; the others, first and middle, go on in the next


@dataclass
class Told:
    """One run as its file tells it."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    preempting: bool = False
    exit: int | None = None

    @property
    def trial(self) -> str:
        return str(self.config.get("trial", "study"))


def told(study: Path) -> list[Told]:
    """Every run in the offline files of a study."""
    return [read(path) for path in sorted((study / "wandb").glob("offline-run-*/*.wandb"))]


def read(path: Path) -> Told:
    found = Told(path.parent)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            found.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "preempting":
            found.preempting = True
        elif kind == "exit":
            found.exit = record.exit.exit_code
    return found


def records(path: Path) -> Iterator[Any]:
    """The records of a file: LevelDB's log format, behind a header of its own."""
    data, at, whole = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def _key(item: Any) -> str:
    return "/".join(item.nested_key) or str(item.key)
