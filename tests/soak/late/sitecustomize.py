"""A file system that is slow to tell: put this folder into PYTHONPATH, and every Python process below has it.

Within LATE_ROOT a process sees for LATE_S seconds (3) what it saw when it last looked: a name that was not there is not
there, a folder holds no more than it held. So do clients of NFS, by their cache of attributes and of names that are
missing. What the process makes itself it sees at once; creating a name exclusively is decided by the server, as ever.
`flock` fails. Not delayed: sizes and contents of files that were seen, names that were deleted, and what libraries
written in C read on their own. LATE_LOG gets a `-` for each name that was denied and a `=` for each old listing.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import time
from typing import Any

ROOT, LOG = os.environ.get("LATE_ROOT", "\0"), os.environ.get("LATE_LOG", os.devnull)
LATE_S = float(os.environ.get("LATE_S", "3"))
missing: dict[str, float] = {}  # path -> when it was looked for in vain
listed: dict[str, tuple[float, set[str]]] = {}  # folder -> when it was listed, and its names


def _path(given: Any) -> str | None:
    """An absolute path below ROOT, else None."""
    if isinstance(given, int):
        return None
    path = os.path.abspath(os.fsdecode(given))  # noqa: PTH100  (pathlib is among what is replaced here)
    return path if path.startswith(ROOT) else None


def _mine(path: str | None) -> None:
    """This process has changed `path`: what was seen of it and of its folder is forgotten."""
    if path is not None:
        for known in [p for p in missing if p == path or p.startswith(path + "/")]:
            missing.pop(known, None)
        listed.pop(os.path.dirname(path), None)  # noqa: PTH120


def _note(letter: str) -> None:
    handle = real_open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, letter.encode())
    os.close(handle)


def _denied(path: str | None) -> None:
    if path is not None and time.monotonic() - missing.get(path, -LATE_S) < LATE_S:
        try:
            real_stat(path)
        except OSError:
            return  # it is not there in truth either
        _note("-")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _looking(real: Any) -> Any:
    def look(path: Any, *rest: Any, **named: Any) -> Any:
        within = _path(path) if named.get("dir_fd") is None else None
        _denied(within)
        try:
            return real(path, *rest, **named)
        except FileNotFoundError:
            if within is not None:
                missing.setdefault(within, time.monotonic())
                if time.monotonic() - missing[within] >= LATE_S:
                    missing[within] = time.monotonic()
            raise

    return look


def _changing(real: Any, which: int = 0) -> Any:
    def change(*given: Any, **named: Any) -> Any:
        done = real(*given, **named)
        for path in given[: which + 1]:
            _mine(_path(path))
        return done

    return change


def _open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
    if flags & os.O_CREAT:
        handle: int = real_open(path, flags, *rest, **named)
        _mine(_path(path))
        return handle
    found: int = looked_open(path, flags, *rest, **named)
    return found


def _io_open(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
    if set(mode) & set("wax"):
        opened = real_io_open(file, mode, *rest, **named)
        _mine(_path(file))
        return opened
    return looked_io_open(file, mode, *rest, **named)


def _known(path: Any, names: list[str]) -> set[str]:
    """Which names of a folder this process may see."""
    within = _path(path)
    if within is None:
        return set(names)
    when, seen = listed.get(within, (-LATE_S, set()))
    if time.monotonic() - when >= LATE_S:
        listed[within] = time.monotonic(), set(names)
        return set(names)
    if set(names) - seen:
        _note("=")
    return seen & set(names)


def _listdir(path: Any = ".") -> list[str]:
    names = real_listdir(path)
    seen = _known(path, names) if not isinstance(path, int | bytes) else set(names)
    return [name for name in names if name in seen]


class _Scan:
    """What `os.scandir` gives, without the names that are not seen yet."""

    def __init__(self, path: Any = ".") -> None:
        with real_scandir(path) as entries:
            every = list(entries)
        names = [entry.name for entry in every]
        seen = _known(path, names) if not isinstance(path, int | bytes) else set(names)
        self._entries = iter([entry for entry in every if entry.name in seen])

    def __iter__(self) -> _Scan:
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries = iter(())


def _flock(handle: Any, operation: int) -> None:
    number = handle if isinstance(handle, int) else handle.fileno()
    if os.readlink(f"/proc/self/fd/{number}").startswith(ROOT):  # noqa: PTH115
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    real_flock(handle, operation)


real_open, real_stat, real_io_open, real_flock = os.open, os.stat, io.open, fcntl.flock
real_listdir, real_scandir = os.listdir, os.scandir
looked_open, looked_io_open = _looking(os.open), _looking(io.open)
if ROOT != "\0":
    os.stat, os.open, os.listdir, os.scandir = _looking(os.stat), _open, _listdir, _Scan
    os.mkdir, os.unlink, os.rmdir = _changing(os.mkdir), _changing(os.unlink), _changing(os.rmdir)
    os.rename, os.replace = _changing(os.rename, 1), _changing(os.replace, 1)
    io.open = builtins.open = _io_open
    fcntl.flock = _flock
