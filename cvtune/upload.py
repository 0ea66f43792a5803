"""What a Ray job would upload from a working directory, measured before it is tried: `python -m cvtune.upload DIR`.

Ray packs the directory into an archive without compression, follows symbolic links, and leaves out what `.gitignore`
and `.rayignore` files say. Its job server refuses archives above 100 MiB, but only after all of it was sent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cvtune.errors import ConfigError, CvtuneError

LIMIT = 100 * 2**20  # bytes, of Ray's job server (DASHBOARD_CLIENT_MAX_SIZE); packages from `ray.init` may have 512 MiB
# Left out of every job. The first four are Ray's own defaults; the last holds the results of runs on this machine.
EXCLUDES = (".git", ".venv", "venv", "__pycache__", "/studies")
ENTRY_BYTES = 76  # a file's two headers in the archive, beside its name in each
END_BYTES = 22  # the end of the archive
SHOWN = 5

Ignores = Callable[[Path], bool]


@dataclass(frozen=True)
class Upload:
    """The archive that Ray would make: its size in bytes, and what each entry of the directory adds, largest first."""

    size: int
    entries: tuple[tuple[str, int], ...]


def measure(root: Path) -> Upload:
    """What Ray would pack of `root`, file by file as Ray decides it.

    Raises:
        ConfigError: it is no folder, or a symbolic link in it leads back to a folder above, which Ray would follow
            round and round.
    """
    root = root.absolute()
    if not root.is_dir():
        raise ConfigError(f"working directory {str(root)!r} is not a folder. Name the folder with your workflow.")
    sizes: dict[str, int] = {}
    for file in _packed(root, [_excluded(root), *_ignore_files(root)], (root.resolve(),)):
        name = file.relative_to(root)
        written = 2 * len(f"{name}{'/' if file.is_dir() else ''}".encode())
        added = ENTRY_BYTES + written + (file.stat().st_size if file.is_file() else 0)
        sizes[name.parts[0]] = sizes.get(name.parts[0], 0) + added
    return Upload(END_BYTES + sum(sizes.values()), tuple(sorted(sizes.items(), key=lambda item: -item[1])))


def check(root: Path, limit: int = LIMIT) -> Upload:
    """`measure`, and refuse what Ray's job server would refuse.

    Raises:
        ConfigError: the archive is larger than `limit` bytes; names the largest entries.
    """
    upload = measure(root)
    if upload.size <= limit:
        return upload
    largest = ", ".join(f"{name} ({_mib(size)})" for name, size in upload.entries[:SHOWN])
    raise ConfigError(
        f"working directory {str(root.absolute())!r} would be an upload of {_mib(upload.size)}; Ray's job server takes "
        f"at most {_mib(limit)}. Largest: {largest}. Symbolic links are followed. List what the job does not need in a "
        "file .rayignore there (patterns as in .gitignore), put images and weights on a file system that all nodes "
        "share and name them by absolute paths, or submit from a folder that holds only the workflow."
    )


def _packed(folder: Path, ignores: list[Ignores], above: tuple[Path, ...]) -> Iterator[Path]:
    """Files and empty folders below `folder` that Ray would pack. `above`: the real folders on the way down."""
    children = sorted(folder.iterdir())
    for path in children:
        inner = [*ignores, *_ignore_files(path)]
        if any(ignored(path) for ignored in inner):
            continue
        if not path.is_dir():
            if path.is_file():  # no sockets, pipes, or links that lead nowhere
                yield path
            continue
        real = path.resolve()
        if real in above:
            raise ConfigError(
                f"{str(path)!r} is a symbolic link back to {str(real)!r}: Ray would pack what is in there again and "
                "again. Remove the link, or list it in a file .rayignore."
            )
        if os.access(path, os.R_OK | os.X_OK) and not any(path.iterdir()):
            yield path
        yield from _packed(path, inner, (*above, real))


def _excluded(root: Path) -> Ignores:
    more = os.environ.get("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "").split(",")
    return _matches(root, [*EXCLUDES, *(pattern.strip() for pattern in more)])


def _ignore_files(folder: Path) -> list[Ignores]:
    names = [".gitignore"] if os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1" else []
    files = [folder / name for name in (*names, ".rayignore")]
    return [_matches(folder, file.read_text().splitlines()) for file in files if file.is_file()]


def _matches(folder: Path, patterns: list[str]) -> Ignores:
    from ray._private.thirdparty.pathspec.pathspec import PathSpec  # the matcher that Ray packs by

    spec = PathSpec.from_lines("gitwildmatch", patterns)
    return lambda path: bool(spec.match_file(str(path.relative_to(folder))))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def main() -> None:
    """Say how much would be uploaded, or why Ray would refuse it."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    try:
        upload = check(root)
    except CvtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"working directory {str(root.absolute())!r}: {_mib(upload.size)} to upload", file=sys.stderr)


if __name__ == "__main__":
    main()
