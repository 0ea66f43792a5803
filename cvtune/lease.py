"""Who owns a study: one driver at a time, each for one numbered term, known by its heartbeat."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
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
SURELY_DEAD_S = 3600.0  # no two clocks differ by this: then there is nothing to watch
ENDED_IN_SLURM = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "REVOKED", "PENDING"),  # pending: requeued, so the start that owned the study is over
}


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
        study.mkdir(mode=0o700, parents=True, exist_ok=True)  # who shares it opens it; one that exists stays as it is
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
        self._beats = 0  # a count, because the clocks of two machines may differ
        self._beat()
        if any(int(p.stem) > self.term for p in journals.glob("*.jsonl") if p.stem.isdigit()):
            raise OwnedError(_owned(study, owner(study) or {}))  # somebody came between our file and our first beat
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the study free for the next owner."""
        self._released.set()
        self._thread.join()
        current = read_json(self.path) or {}
        if not self.lost.is_set() and current.get("term", 0) <= self.term:
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
        me |= {"beat": self._beats, "slurm_job": os.environ.get("SLURM_JOB_ID"), "slurm_restart": _slurm_restart()}
        self._beats += 1
        write_whole(self.path, json.dumps(me))


def refuse_if_owned(study: Path) -> None:
    """Raise OwnedError if a living process owns the study.

    An owner on this machine is looked up, and so is the Slurm job of one on another machine; either way the answer
    is there at once. Any other owner is watched: it lives if its heartbeat moves within `STALE_S`, whatever the
    clocks of the two machines say.
    """
    current = owner(study)
    if current is None:
        return
    elsewhere = current.get("host") != socket.gethostname()
    if not is_alive(current, stale_s=SURELY_DEAD_S if elsewhere else STALE_S):
        return
    if elsewhere:
        until = time.monotonic() + STALE_S
        while time.monotonic() < until:
            now = owner(study) or {}
            if now.get("released") or _ended_in_slurm(now):
                return
            if now.get("beat") != current.get("beat") or now.get("term") != current.get("term"):
                break
            time.sleep(1.0)
        else:
            return
    raise OwnedError(_owned(study, current))


def owner(study: Path) -> dict[str, Any] | None:
    """What `lease.json` says of the last owner, or None where there never was one."""
    return read_json(study / "lease.json")


def is_alive(lease: dict[str, Any], stale_s: float = STALE_S) -> bool:
    """Whether the owner that a lease names still runs, as far as can be seen from here."""
    if lease.get("released", False):
        return False
    if lease.get("host") == socket.gethostname():
        try:  # the same process number may belong to another program by now: compare the start time
            return bool(abs(psutil.Process(lease["pid"]).create_time() - lease["started"]) < 1.0)
        except (psutil.Error, KeyError):
            return False
    if _ended_in_slurm(lease):
        return False
    return time.time() - float(lease.get("heartbeat", 0)) < stale_s


def _ended_in_slurm(lease: dict[str, Any]) -> bool:
    """Whether the owner ran in a Slurm job (or an earlier start of a requeued one) that is over."""
    job = lease.get("slurm_job")
    if not job or shutil.which("squeue") is None:
        return False
    if job == os.environ.get("SLURM_JOB_ID") and lease.get("slurm_restart") != _slurm_restart():
        return True  # this very job, requeued: its earlier start has ended
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode != 0:
        return "Invalid job id" in done.stderr
    return not done.stdout.split() or set(done.stdout.split()) <= ENDED_IN_SLURM


def _slurm_restart() -> str:
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def _owned(study: Path, lease: dict[str, Any]) -> str:
    who = f"process {lease.get('pid', '?')} on {lease.get('host', 'another machine')}"
    return (
        f"study {str(study)!r} is being run by {who}. Follow it with `cvtune status {study}`, "
        f"end it with `cvtune stop {study}`, or use another name with --name."
    )
