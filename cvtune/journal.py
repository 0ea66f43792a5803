"""The journal: the append-only record of a study and its only source of truth.

One file per owner's term, one JSON object per line: `v` format version, `n` sequence number within the term,
`t` seconds since 1970, `kind`, the event's own keys, and last `crc`, the CRC-32 of everything before it.

Kinds, each one step that happened whole or not at all: `open` and `close` of a term; `trial` a proposed point; `start`
the scheduler lets a waiting trial go on; `segment` a process begins to train; `epoch` one report with what the
scheduler answered and, if it was the last, why; `end` a trial's terminal reason without a report; `retry` its process
was lost, or memory of a shared GPU ran out; `repeat` a report that was known already; `winner` which recipe the
confirmation chose; `test` what a confirmed trial scores on the test images; `share` how many trials share a GPU from
here on, and why.

Where the scheduler was asked, the event holds `call` (the number of the question), `answer` (go, stop or pause) and
`acts` (what it did to trials: stops, exploits).
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cvtune.errors import CvtuneError, OwnedError, short
from cvtune.event import FORMAT, Event, parse

COMMIT_S = 1.0


class Journal:
    """Appends events to one term's file. A line goes to the system at once and to the disk at least every second."""

    def __init__(self, path: Path, lost: Callable[[], bool] = lambda: False) -> None:
        """`lost` says whether another process has taken over; nothing is written from then on."""
        self._lost = lost
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._number = 0
        self.synced = 0  # events that are on the disk, whatever happens to the machine
        self._committed = time.monotonic()

    def append(self, kind: str, event: Mapping[str, Any]) -> Event:
        """Write one event, whole or not at all; returns it as `read` will. JSON has no NaN: it becomes null."""
        if self._lost():
            raise OwnedError("the study was taken over by another process while this one was silent.")
        plain = {key: _plain(value) for key, value in event.items()}
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
        if time.monotonic() - self._committed > COMMIT_S:
            self.commit()
        return Event(full)

    def commit(self) -> None:
        """Flush everything to the disk."""
        os.fsync(self._handle)
        self.synced = self._number
        self._committed = time.monotonic()

    def close(self) -> None:
        self.commit()
        os.close(self._handle)


def _plain(value: Any) -> Any:
    """A number, a text, or a list of them as JSON and tables can say it: a file's name may be no Unicode."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(study: Path) -> Iterator[Event]:
    """Every event of every term, in order; see `terms`."""
    for _, events in terms(study):
        yield from events


def terms(study: Path) -> list[tuple[int, list[Event]]]:
    """The events of each term that wrote any, in order.

    A torn last line of a term (its writer was killed) is left out. So is everything that its successor did not see:
    each term's first event, `open`, names the last term that it read (`saw_term`) and how many events of it (`saw`).
    What an owner writes that was frozen and thawed after a takeover thus counts for nothing.

    Raises:
        CvtuneError: a line before the last is damaged, or was written by another format of cvtune.
    """
    return _counted([_term(path) for path in _files(study)])


class Tail:
    """A journal that is read again and again while it grows. Each line is parsed once, unless a new term begins."""

    def __init__(self, study: Path) -> None:
        self._study = study
        self._known: list[Path] = []
        self._at = 0  # bytes that were read of the last file

    def read(self) -> tuple[list[Event], bool]:
        """The events since the last call; and whether those before it are void and all of them come again.

        They do at the first call, and when a new owner has said what counts of the terms before its own.

        Raises:
            CvtuneError: as `terms`.
        """
        files = _files(self._study)
        anew = files != self._known
        self._known, self._at = files, 0 if anew else self._at
        if not files:
            return [], anew
        with files[-1].open("rb") as file:
            file.seek(self._at)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._at += len(whole)
        events = list(_events(whole.splitlines(), files[-1]))
        if anew:
            last = (int(files[-1].stem), events)
            return [e for _, of_term in _counted([*map(_term, files[:-1]), last]) for e in of_term], True
        if events and events[0]["kind"] == "open":  # its file was there before its first line
            self._known = []
            return self.read()
        return events, False


def _files(study: Path) -> list[Path]:
    """The file of each term in order; a copy that somebody made, '0001 (2).jsonl', is none."""
    return sorted(path for path in (study / "journal").glob("*.jsonl") if path.stem.isdecimal())


def _term(path: Path) -> tuple[int, list[Event]]:
    """The number of a term and its events: by copies of closed pieces where there are any, else line by line."""
    if not any(path.parent.glob(f"{path.stem}.*.arrow")):
        with path.open("rb") as file:
            return int(path.stem), list(_events(file, path))
    from cvtune.compact import copies  # late: Arrow, which small studies need not load

    events: list[Event] = []
    with path.open("rb") as file:
        done = 0
        for copy in copies(path):
            file.seek(done)
            between = file.read(copy.start - done).splitlines()
            events += [*_events(between, path, len(events)), *copy.block.events()]
            done = copy.end
        file.seek(done)
        events += _events(file, path, len(events))
    return int(path.stem), events


def _counted(terms: list[tuple[int, list[Event]]]) -> list[tuple[int, list[Event]]]:
    """The terms without what their successors did not see, and without empty ones."""
    found: list[tuple[int, list[Event]]] = []
    for number, events in terms:
        if events and "saw_term" in events[0]:
            last, count = events[0]["saw_term"], events[0].get("saw")
            if type(last) is not int or type(count) is not int or count < 0:
                raise CvtuneError(f"term {number} of the journal does not say what it saw. Restore it from a copy.")
            found = [(term, seen[:count] if term == last else seen) for term, seen in found if term <= last]
        if events:
            found.append((number, events))
    return found


def _events(lines: Iterable[bytes], path: Path, before: int = 0) -> Iterator[Event]:
    """The events of lines, of which there are `before` in front of them in the file."""
    damaged = 0
    for number, line in enumerate(lines, before + 1):
        if not (line := line.rstrip(b"\n")):
            continue
        if damaged:
            raise CvtuneError(
                f"{path}, line {damaged}: damaged (checksum). Restore the file from a copy; "
                "the lines before it are good."
            )
        event = parse(line)
        if event is None:
            damaged = number  # the last line is torn where its writer was killed
            continue
        if event["v"] != FORMAT:
            raise CvtuneError(
                f"{path}: written by another cvtune (format {short(event['v'])}, this one reads {FORMAT})."
            )
        yield event
