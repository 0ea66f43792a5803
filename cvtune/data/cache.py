"""The cache folder: where it is, how much of its disk may be used, and how processes take turns in it."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cvtune.durable import write_whole
from cvtune.errors import ConfigError, DataError

LONGEST_WAIT_S = 2 * 3600.0
KEEP_FREE = 10**9  # bytes, or a tenth of a smaller disk
_log = logging.getLogger(__name__)


def cache_folder(explicit: Path | None) -> Path:
    """The folder for decoded images, created if need be: `explicit`, else on the disk of the job or of the node.

    Raises:
        ConfigError: it cannot be created or written.
    """
    scratch = os.environ.get("SLURM_TMPDIR")
    default = Path(scratch, "cvtune") if scratch else Path(tempfile.gettempdir(), f"cvtune-{_user()}")
    folder = (explicit or default).expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(
            f"cache folder {folder}: cannot be written ({error.strerror}). "
            "Name a folder on a local disk that you may write to with --cache DIR."
        ) from error


def allowance(cache: Path, limit_bytes: int | None) -> int:
    """Bytes that decoded images may take: the limit (None: half of what is free), and never the last of the disk."""
    disk = shutil.disk_usage(cache)
    limit = disk.free // 2 if limit_bytes is None else limit_bytes
    return max(0, min(limit, disk.free - min(KEEP_FREE, disk.total // 10)))


def remember(path: Path, content: bytes) -> None:
    """Writes a small file that saves work next time: all of it, or nothing where the disk is full."""
    with contextlib.suppress(OSError):
        write_whole(path, content)


@contextlib.contextmanager
def locked(path: Path, longest_wait_s: float = LONGEST_WAIT_S) -> Iterator[None]:
    """Holds the lock file `path` alone. The lock of a process that dies is free at once.

    Raises:
        DataError: another process held it for `longest_wait_s` seconds.
        ConfigError: the file system knows no locks.
    """
    started = time.monotonic()
    report_at = 0.0
    with path.open("ab") as file:
        while not _try_lock(file.fileno(), path):
            waited = time.monotonic() - started
            if waited > longest_wait_s:
                raise DataError(
                    f"{path}: another process has been decoding these images for {waited:.0f} s. See whether it is "
                    "stuck and end it, or decode elsewhere with --cache DIR."
                )
            if waited >= report_at:
                _log.info("Waiting for another process that decodes the same images (%.0f s so far).", waited)
                report_at = waited + 15
            time.sleep(0.05)
        yield


def sweep(cache: Path) -> None:
    """Removes the half-written stores of processes that were killed: those whose lock is free."""
    for half in cache.glob("*.part"):
        with contextlib.suppress(DataError), locked(half.with_suffix(".lock"), longest_wait_s=-1):
            half.unlink(missing_ok=True)


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{path}: the file system cannot lock files ({error.strerror}). Use a local disk: --cache DIR."
        ) from error
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())
