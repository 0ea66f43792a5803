"""Who owns a study: one driver at a time, each for one numbered term, known by its heartbeat."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cvtune.durable import read_json, write_whole
from cvtune.errors import OwnedError

FORMAT = 1
STOP_REQUEST = "stop.json"  # put into the study's folder to ask its owner for an orderly end
HEARTBEAT_S = 5.0
STALE_S = 60.0  # an owner on another machine that has been silent for this long is taken for dead


class Lease:
    """The right to write a study's journal for one term.

    Taking it creates `journal/<term>.jsonl` exclusively, which only one process can do: that is the arbiter, on
    every file system. `lease.json` beside it tells others who that was and that it still lives.

    Raises:
        OwnedError: another living process owns the study.
    """

    def __init__(self, study: Path) -> None:
        self.path = study / "lease.json"
        refuse_if_owned(study)
        journals = study / "journal"
        journals.mkdir(parents=True, exist_ok=True)
        self.term = 1 + max((int(p.stem) for p in journals.glob("*.jsonl") if p.stem.isdigit()), default=0)
        self.journal = journals / f"{self.term:04d}.jsonl"
        try:
            os.close(os.open(self.journal, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            raise OwnedError(_owned(study, owner(study) or {})) from None
        self.lost = threading.Event()
        self._released = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the study free for the next owner."""
        self._released.set()
        self._thread.join()
        if not self.lost.is_set():
            self._beat(released=True)

    def _keep_beating(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            current = read_json(self.path)
            if current is not None and current.get("term", 0) > self.term:
                self.lost.set()  # we were silent for too long and somebody took over: write nothing any more
                return
            try:
                self._beat()
            except OSError:
                continue  # a full disk must not end the run; the next beat may work again

    def _beat(self, released: bool = False) -> None:
        me: dict[str, Any] = {"format": FORMAT, "term": self.term, "host": socket.gethostname(), "pid": os.getpid()}
        me |= {"started": psutil.Process().create_time(), "heartbeat": time.time(), "released": released}
        write_whole(self.path, json.dumps(me))


def refuse_if_owned(study: Path) -> None:
    """Raise OwnedError if a living process owns the study."""
    current = owner(study)
    if current is not None and is_alive(current):
        raise OwnedError(_owned(study, current))


def owner(study: Path) -> dict[str, Any] | None:
    """What `lease.json` says of the last owner, or None where there never was one."""
    return read_json(study / "lease.json")


def is_alive(lease: dict[str, Any]) -> bool:
    """Whether the owner that a lease names still runs, as far as can be seen from here."""
    if lease.get("released", False):
        return False
    if lease.get("host") == socket.gethostname():
        try:  # the same process number may belong to another program by now: compare the start time
            return bool(abs(psutil.Process(lease["pid"]).create_time() - lease["started"]) < 1.0)
        except (psutil.Error, KeyError):
            return False
    return time.time() - float(lease.get("heartbeat", 0)) < STALE_S


def _owned(study: Path, lease: dict[str, Any]) -> str:
    who = f"process {lease.get('pid', '?')} on {lease.get('host', 'another machine')}"
    return (
        f"study {str(study)!r} is being run by {who}. Follow it with `cvtune status {study}`, "
        f"end it with `cvtune stop {study}`, or use another name with --name."
    )
