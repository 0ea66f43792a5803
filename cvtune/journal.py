"""The journal: the append-only record of a study and its only source of truth.

One file per owner's term, one JSON object per line: `v` format version, `n` sequence number within the term,
`t` seconds since 1970, `kind`, the event's own keys, and last `crc`, the CRC-32 of everything before it.

Kinds: `open` and `close` of a term; `trial` a proposed point; `segment` a recipe that a process starts to train;
`epoch` one report; `call` one call of scheduler or searcher with its answer; `end` a trial's terminal reason.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtune.errors import CvtuneError, OwnedError
from cvtune.recipe import Recipe, Value

FORMAT = 1
COMMIT_S = 1.0

REASONS = {
    "completed": "trained for max_epochs",
    "stopped_scheduler": "stopped early by the scheduler",
    "stopped_patience": "no better objective for `patience` epochs",
    "stopped_budget": "the study's budget was spent",
    "diverged": "loss became NaN or infinite",
    "oom_gpu": "out of GPU memory",
    "oom_host": "out of host memory",
    "hung": "made no progress",
    "data_error": "the images or labels could not be read",
    "code_error": "an exception in the training code",
    "infra_lost": "process or node lost more often than resources.retries",
    "cancelled": "cancelled by the user",
}


class Journal:
    """Appends events to one term's file. A line goes to the system at once and to the disk at least every second."""

    def __init__(self, path: Path, lost: Callable[[], bool] = lambda: False) -> None:
        """`lost` says whether another process has taken over; nothing is written from then on."""
        self._lost = lost
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._number = 0
        self._synced = time.monotonic()

    def append(self, kind: str, event: dict[str, Any]) -> dict[str, Any]:
        """Write one event, whole or not at all; returns it as `read` will. JSON has no NaN: it becomes null."""
        if self._lost():
            raise OwnedError("the study was taken over by another process while this one was silent.")
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in event.items()}
        full = {"v": FORMAT, "n": self._number, "t": round(time.time(), 3), "kind": kind, **plain}
        body = json.dumps(full, separators=(",", ":"), allow_nan=False)[:-1]
        line = f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'.encode()
        start = os.fstat(self._handle).st_size
        try:
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError:
            os.ftruncate(self._handle, start)  # a full disk took a part; a later line must not follow inside it
            raise
        self._number += 1
        if time.monotonic() - self._synced > COMMIT_S:
            self.commit()
        return full

    def commit(self) -> None:
        """Flush everything to the disk."""
        os.fsync(self._handle)
        self._synced = time.monotonic()

    def close(self) -> None:
        self.commit()
        os.close(self._handle)


def read(study: Path) -> Iterator[dict[str, Any]]:
    """Every event of every term, in order. A torn last line of a term (its writer was killed) is left out.

    Raises:
        CvtuneError: a line before the last is damaged, or was written by a newer cvtune.
    """
    for path in sorted((study / "journal").glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines):
            if not line:
                continue
            event = _parse(line)
            if event is None:
                if number >= len(lines) - 2 and not any(lines[number + 1 :]):
                    break
                raise CvtuneError(
                    f"{path}, line {number + 1}: damaged (checksum). Restore the file from a copy; "
                    "the lines before it are good."
                )
            if event["v"] > FORMAT:
                raise CvtuneError(f"{path}: written by a newer cvtune (format {event['v']}, this one reads {FORMAT}).")
            yield event


def _parse(line: bytes) -> dict[str, Any] | None:
    body, mark, tail = line.rpartition(b',"crc":"')
    if not mark or tail[:8] != f"{zlib.crc32(body):08x}".encode():
        return None
    event: dict[str, Any] = json.loads(body + b"}")
    return event


@dataclass
class TrialRecord:
    """One trial as the journal tells it."""

    trial: str
    index: int
    values: dict[str, Value]
    recipe: Recipe
    proposed: float
    epochs: list[dict[str, Any]] = field(default_factory=list)  # step, epoch, attempt, segment, t and the metrics
    attempt: int = 0
    segment: int = -1
    node: str = ""
    reason: str | None = None
    message: str = ""
    ended: float | None = None

    @property
    def steps(self) -> int:
        return int(self.epochs[-1]["step"]) if self.epochs else 0


@dataclass
class History:
    """What the events so far add up to. `apply` is the only way it changes, live as in replay."""

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    terms: list[dict[str, Any]] = field(default_factory=list)

    def apply(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "trial":
            recipe = Recipe.model_validate(event["recipe"])
            self.trials[event["trial"]] = TrialRecord(
                event["trial"], event["index"], event["values"], recipe, event["t"]
            )
        elif kind == "segment":
            record = self.trials[event["trial"]]
            record.attempt, record.segment, record.node = event["attempt"], event["segment"], event["node"]
        elif kind == "epoch":
            self.trials[event["trial"]].epochs.append(event)
        elif kind == "end":
            record = self.trials[event["trial"]]
            record.reason, record.message, record.ended = event["reason"], event["message"], event["t"]
        elif kind == "call":
            self.calls.append(event)
        elif kind == "open":
            self.terms.append({**event, "closed": None, "why": None})
        elif kind == "close":
            self.terms[-1] |= {"closed": event["t"], "why": event["why"]}

    @property
    def complete(self) -> bool:
        """Whether the last term ended because there was nothing left to do."""
        return bool(self.terms) and self.terms[-1]["why"] == "complete"

    def best(self, objective: str, mode: str) -> tuple[TrialRecord, dict[str, Any]] | None:
        """The trial and its epoch with the best finite objective; failed trials do not count."""
        sign = 1.0 if mode == "max" else -1.0
        scored = [
            (sign * epoch[objective], -record.index, -epoch["step"], record, epoch)
            for record in self.trials.values()
            if record.reason not in ("diverged", "code_error", "data_error")
            for epoch in record.epochs
            if epoch[objective] is not None
        ]
        return max(scored, key=lambda s: s[:3])[3:] if scored else None


def load(study: Path) -> History:
    """The history of a study folder."""
    history = History()
    for event in read(study):
        history.apply(event)
    return history
