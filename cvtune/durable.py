"""Files that appear whole or not at all: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def write_whole(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step. A reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_name(path)
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends; after an error nothing changed.

    Linux exchanges the two in one step. Where a file system cannot (NFS, macOS), two renames do it: a process that is
    killed between them leaves no `folder`, never a part of one.

    Raises:
        OSError: the disk is full or the folder above cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = aside_name(folder), aside_name(folder)
    try:
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            sync(path)
        if not (folder.exists() and _exchanged(new, folder)):
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                old.rename(folder)
                raise
        sync(folder.parent)
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two paths of one file system have changed places, in one step."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28, musl 1.2.6; Python has no name for it
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def aside_name(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Delete what killed processes left half written in `folder`; files of this process may still be at work.

    Args:
        patterns: where to look, such as `tables`; `.` is the folder itself.
    """
    for pattern in patterns:
        for path in folder.glob(f"{pattern}/.*.tmp"):
            if f".{os.getpid()}." in path.name:
                continue
            if path.is_file():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk or a quota is exhausted."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def open_log(path: Path) -> TextIO:
    """A file to print to, line by line, after what is there. A full disk makes it incomplete, and is no error."""
    return io.TextIOWrapper(io.BufferedWriter(_Log(path, "ab")), line_buffering=True)


class _Log(io.FileIO):
    def write(self, content: Any, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(content)
        return memoryview(content).nbytes


def sync(path: Path) -> None:
    """Flush a file, or a folder so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None where there is none (missing, torn, no object, nested a thousand deep)."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
