"""What a syncer has delivered, and the lock that keeps a second one out: `wandb/cursor.json` and `wandb/lock`."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cvtune.durable import read_json, write_whole
from cvtune.errors import CvtuneError

FORMAT = 1  # a reader accepts its own
WRITE_S = 1.0
LOCK = "CVTUNE_SYNC_LOCK"  # environment: the open lock file of a syncer that begins anew in the same process


@dataclass(frozen=True)
class Delivered:
    """One run as W&B has it. `digest` changes with what there is to tell; `place` is the folder of an offline run."""

    digest: str
    place: str = ""


class Cursor:
    """Which runs one target (a server's project, or offline files) has, by trial."""

    def __init__(self, study: Path, target: str) -> None:
        """
        Raises:
            CvtuneError: another format of cvtune wrote it.
        """
        self._path, self._target = study / "wandb" / "cursor.json", target
        content = read_json(self._path) or {"format": FORMAT, "targets": {}}
        if content["format"] != FORMAT:
            raise CvtuneError(
                f"{self._path}: written by another cvtune (format {content['format']}, this one reads {FORMAT}). "
                "Update cvtune; or remove the file, and everything is delivered again into the same runs."
            )
        self._targets: dict[str, dict[str, dict[str, str]]] = content["targets"]
        self._written = 0.0

    def get(self, key: str) -> Delivered | None:
        """What was delivered of a run; None if nothing."""
        entry = self._targets.get(self._target, {}).get(key)
        return None if entry is None else Delivered(**entry)

    def put(self, key: str, delivered: Delivered) -> None:
        """Take note; on the disk within `WRITE_S` or at the next `flush`. What is lost is delivered again."""
        self._targets.setdefault(self._target, {})[key] = asdict(delivered)
        if time.monotonic() - self._written > WRITE_S:
            self.flush()

    def drop(self, key: str) -> None:
        """Forget a run whose files are about to be replaced."""
        self._targets.get(self._target, {}).pop(key, None)
        self.flush()

    def flush(self) -> None:
        """Write it."""
        write_whole(self._path, json.dumps({"format": FORMAT, "targets": self._targets}))
        self._written = time.monotonic()

    @property
    def places(self) -> set[str]:
        """The folders of offline runs that are whole, whichever project they are for."""
        return {entry["place"] for runs in self._targets.values() for entry in runs.values()}


def take_lock(study: Path) -> int | None:
    """The open file that holds the lock of a study's syncer until this process ends; None if another one has it.

    The system gives it up with the process, however that ends.
    """
    handed = os.environ.pop(LOCK, "")
    if handed:
        return int(handed)
    (study / "wandb").mkdir(parents=True, exist_ok=True)
    handle = os.open(study / "wandb" / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def hand_on(lock: int) -> None:
    """Let the program that this process executes next have the lock."""
    os.set_inheritable(lock, True)
    os.environ[LOCK] = str(lock)
