"""Brings published data sets and weights to where trials look for them; run where there is a network.

Trials download nothing: many nodes would do so at once, and the nodes of most clusters have no network.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cvtune.durable import is_full
from cvtune.errors import ConfigError, DataError
from cvtune.sections import TORCHVISION
from cvtune.study import Study

SILENCE_S = 60.0  # a server that says nothing for so long is given up
LOCAL = frozenset(("apfs", "btrfs", "ext2", "ext3", "ext4", "hfs", "overlay", "ramfs", "tmpfs", "xfs"))


@dataclass(frozen=True)
class Item:
    """Something that a study needs, now in its place. Of a data set, the digest is over names and contents of files."""

    what: str
    where: Path
    variable: str  # of the environment, which decides where
    bytes: int
    sha256: str
    downloaded: bool

    def __str__(self) -> str:
        how = "downloaded" if self.downloaded else "there already"
        return f"{self.what}: {self.where}, {_size(self.bytes)}, SHA-256 {self.sha256[:12]}, {how}"

    def note(self) -> str:
        """What to think of where it lies: a disk that other machines cannot see, unless it is exported; else ""."""
        import psutil

        mounted = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
        place = self.where.resolve()
        kind = next((mounted[above] for above in (place, *place.parents) if above in mounted), "")
        if kind not in LOCAL:
            return ""
        return (
            f"{self.where} is on a file system of this machine ({kind}). If other nodes do not see it, set "
            f"{self.variable} to a folder that they share, for `cvtune fetch` and for `cvtune run`."
        )


def fetch(study: Study) -> Iterator[Item]:
    """Get what trials of `study` may ask for, one after the other: its data set, then each model's weights once.

    What is there is checked and stays as it is. A download that breaks leaves nothing in the places of the whole ones.

    Raises:
        DataError: the data set cannot be got, or is broken.
        ConfigError: weights cannot be got, or what is asked for is not published.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        if study.data.source.startswith(TORCHVISION):
            yield _fetch_data(study)
        for name in pretrained_models(study):
            yield _fetch_weights(name)
    finally:
        socket.setdefaulttimeout(before)


def require_weights(study: Study) -> None:
    """Check that all published weights are there that a trial may ask for.

    Raises:
        ConfigError: some are not there, or none are published.
    """
    for name in pretrained_models(study):
        from cvtune.models.weights import published  # late: torch, which few studies need here

        published(name).required()


def pretrained_models(study: Study) -> list[str]:
    """Values of `model.name` that a trial may combine with `model.pretrained` = 'default', each once."""
    return list(dict.fromkeys(name for name, pretrained in model_pairs(study) if pretrained == "default"))


def model_pairs(study: Study) -> list[tuple[str, str]]:
    """Each `model.name` with each `model.pretrained` but None that a trial may combine it with, once."""
    base, space = study.recipe.model, study.space
    recipes = [study.recipe, *study.candidates.values()]
    pairs: list[tuple[object, object]] = [(recipe.model.name, recipe.model.pretrained) for recipe in recipes]
    key = "model.pretrained"
    by_name = key in space.domains and space.parent(key) == "model.name"
    names = space.domains["model.name"].edges() if "model.name" in space.domains else (base.name,)
    for name in names:
        cases = space.cases(key) if key in space.domains else []
        domains = [domain for meets, domain in cases if not by_name or name in meets]
        values = [value for domain in domains for value in domain.edges()]
        pairs += [(name, value) for value in values or (base.pretrained,)]
    return list(dict.fromkeys((str(name), str(pretrained)) for name, pretrained in pairs if pretrained))


def _fetch_weights(name: str) -> Item:
    from cvtune.models.weights import published

    weights = published(name)
    absent = not weights.is_whole()
    if absent:
        try:
            weights.download()
        except Exception as error:  # of the network, of torch.hub, of the disk
            if is_full(error):
                raise
            by_hand = (
                f"download it by hand and give its path as model.pretrained (it is {weights.hub[0]}'s {weights.hub[1]})"
                if weights.hub
                else f"put the file as {weights.file.name} into {weights.file.parent} ($TORCH_HOME decides where)"
            )
            raise ConfigError(
                f"model.pretrained = 'default': {weights.url} could not be downloaded ({_told(error)}). Try again "
                f"where there is a network, or {by_hand}."
            ) from error
    size, digest = weights.file.stat().st_size, weights.sha256()
    return Item(f"weights of {name}", weights.file, weights.variable, size, digest, absent)


def _fetch_data(study: Study) -> Item:
    from cvtune.data import read_source
    from cvtune.data.torchvision import data_folder, find_row

    row, folder = find_row(study.data.source), data_folder()
    missing = row.missing(folder)
    if missing:
        _download_data(study.data.source, missing)
    read_source(study.data)  # whether it is whole; the run reads it no other way
    places = [folder / name for name in row.there]
    size, digest = _content(folder, places)
    where = Path(os.path.commonpath(places))
    return Item(f"data set {study.data.source}", where, "CVTUNE_DATA", size, digest, bool(missing))


def _download_data(source: str, missing: list[str]) -> None:
    """Download and unpack in a hidden folder beside, then move what is `missing`: torchvision would work in place."""
    from cvtune.data.torchvision import data_folder, find_row

    row, folder = find_row(source), data_folder()
    asked = _urls()
    asked.clear()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".fetch-{row.name}-", dir=folder) as name:
            aside = Path(name)
            for archive in row.archives:
                if (folder / archive).is_file():  # put there by hand
                    (aside / archive).parent.mkdir(parents=True, exist_ok=True)
                    (aside / archive).symlink_to(folder / archive)
            with _no_bars_in_files():
                for part in row.parts:
                    row.open(aside, part, download=True)
            for name in missing:
                _move(aside / name, folder / name)
    except Exception as error:  # of the network, of torchvision, of the disk
        if is_full(error):
            raise
        by_hand = [archive for archive in row.archives if not (folder / archive).is_file()]
        where = f" from {asked[-1]}" if asked else ""
        raise DataError(
            f"{source} could not be downloaded{where} ({_told(error)}). Try again where there is a network, or put "
            f"{', '.join(by_hand or row.archives)} into {folder} ($CVTUNE_DATA decides where) and call "
            "`cvtune fetch` again, which checks and unpacks."
        ) from error


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError:
        if not target.exists():  # else another `cvtune fetch` was first
            raise


def _content(root: Path, places: list[Path]) -> tuple[int, str]:
    """Bytes and SHA-256 of all files at or below `places`, each with its name relative to `root`."""
    files = sorted(file for place in places for file in (place, *place.rglob("*")) if file.is_file())
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(f"{file.relative_to(root)}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return sum(file.stat().st_size for file in files), total.hexdigest()


@cache
def _urls() -> list[str]:
    """Every URL that this process asks for from now on. torchvision's errors do not name theirs."""
    urls: list[str] = []
    sys.addaudithook(lambda event, details: urls.append(details[0]) if event == "urllib.Request" else None)
    return urls


@contextlib.contextmanager
def _no_bars_in_files() -> Iterator[None]:
    """torchvision draws its progress bars also where nobody sees them move."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")


def _size(size: int) -> str:
    unit, name = next(((u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if size >= u), (1, "bytes"))
    return f"{size / unit:.3g} {name}"
