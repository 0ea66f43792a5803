"""Data sets in archives: zips, tars (WebDataset's too) and Parquet files, one or many, read without unpacking them."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cvtune.data.assemble import make_listing
from cvtune.data.folder import PART_FOLDERS
from cvtune.data.inside import by_folder, by_pair, has_sides
from cvtune.data.listing import PARTS, Labelled, Labels, Listing, Task
from cvtune.data.masks import listed_names, segmented
from cvtune.data.members import Found, list_members
from cvtune.data.packed import forget_open_archives
from cvtune.data.parquet import by_row, holds_images, stores_masks
from cvtune.data.webdataset import CLASS_NAMES, by_key, masks_of
from cvtune.errors import DataError, did_you_mean
from cvtune.sections import ARCHIVES, Source

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_DATA = "data"  # the folder of Parquet files in data sets from Hugging Face


def claims(path: Path) -> bool:
    """Whether a source is read here: an archive, a pattern of archives, or a folder of archives and no other folder.

    A Parquet file with the paths of images, not their bytes, is a manifest.
    """
    name = path.name.lower()
    if name.endswith(".parquet") and path.is_file():
        return holds_images(path)
    return name.endswith((*ARCHIVES, *_COMPRESSED)) or (path.is_dir() and bool(_in_folder(path)))


def read(path: Path, source: Source, cache: Path | None = None, workers: int = 1) -> Listing:
    """Lists the images in archives: their headers and labels are read, no image is; of masks see `segmented`.

    Several archives are parts by the beginning of their names, or by their folders: `train.zip` and `val.zip`,
    `train-00000.tar`, `test/0.parquet`. One archive holds all, and may tell parts by folders inside or by a column
    'split'.

    Raises:
        DataError: no archive is found, one cannot be used as it is, or they hold no classes that can be used.
    """
    if path.name.lower().endswith(_COMPRESSED):
        raise DataError(
            f"{source.source}: is a compressed tar, which can only be read from its beginning. Decompress it (gunzip, "
            "bunzip2, unxz, unzstd), or pack it as a zip: images hardly get smaller."
        )
    files = _in_folder(path) if path.is_dir() else _expanded(path)
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise DataError(f"{source.source}: holds {' and '.join(suffixes)} files. Keep one kind, or name a pattern.")
    forget_open_archives()
    root = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    by_part, notices = _by_part(root, files)
    found = {part: _found(source, some, bool(part)) for part, some in by_part.items()}
    classes, found = _agreed(root, found)
    parts: dict[str, Labelled] = {}
    for part, each in found.items():
        notices += each.notices
        for name, rows in _rows(each, part):
            parts[name] = Labelled(each.items, each.labels, each.tags, each.masks).take(rows)
    ignored = [name for each in found.values() for name in each.ignored]
    if ignored:
        notices.append(f"{len(ignored)} files without an image's extension were ignored, for example {ignored[0]}.")
    first = next(iter(found.values()))
    if len(files) == 1:  # names are then those of the unpacked folder
        root = files[0] / first.inside
    if first.masks is not None:
        return segmented(source, classes, parts, root=root, notices=notices, cache=cache, workers=workers)
    task: Task = "classify" if first.tags is None else "multilabel"
    whole = set(parts) == {"train"} and not any(by_part)
    return make_listing(source, classes or (), parts, whole=whole, root=root, notices=notices, task=task)


def has_masks(path: Path, source: Source) -> bool:
    """Whether the first archive holds masks, by the names in it or its columns.

    Raises:
        DataError: it is missing or cannot be read.
    """
    first = (_in_folder(path) if path.is_dir() else _expanded(path))[0]
    if first.suffix.lower() == ".parquet":
        return stores_masks(first)
    members = list_members(first)
    beside = first.suffix.lower() == ".tar" and bool(masks_of(members))
    return beside or has_sides(members.names, source.masks)


def _in_folder(root: Path) -> list[Path]:
    """The archives in a folder, in its part folders and in 'data'; none if another folder is there: that is a class."""
    found: list[Path] = []
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        for entry in entries:
            if entry.name.lower().endswith(ARCHIVES) and entry.is_file():
                found.append(entry)
            elif entry.is_dir():
                inside = entry.name.lower() in (*PART_FOLDERS, _DATA) and [
                    file for file in sorted(entry.iterdir()) if file.name.lower().endswith(ARCHIVES)
                ]
                if not inside:
                    return []
                found += inside
    except OSError:
        return []  # the reader of folders will tell
    return found


def _expanded(path: Path) -> list[Path]:
    """The files of a pattern, sorted within each alternative: {000..127}, {train,val}, *, ? and [...]."""
    files: list[Path] = []
    for name in _alternatives(str(path)):
        matched = [name] if Path(name).is_file() else sorted(glob.glob(name))  # noqa: PTH207 (the root is in the pattern)
        if not matched:
            others = [p.name for p in path.parent.glob("*") if p.name.lower().endswith(ARCHIVES)]
            near = did_you_mean(Path(name).name, others) if others else ""
            raise DataError(f"{name}: no such file. Check the path. {near}".rstrip())
        files += [Path(file) for file in matched]
    return list(dict.fromkeys(files))


def _alternatives(pattern: str) -> Iterator[str]:
    """What a pattern with braces stands for, as in a shell: '{08..10}' gives 08, 09, 10."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for i, piece in enumerate(pieces):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if i % 2 else None
        if numbers:
            first, last = numbers.groups()
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(",") if i % 2 else [piece])
    return ("".join(chosen) for chosen in itertools.product(*choices))


def _by_part(root: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """The archives of each part, under '' if they are not told apart; and notices."""
    parts: dict[str, list[Path]] = {}
    for file in files if len(files) > 1 else ():
        beginning = re.split(r"[^a-z]", file.stem.lower())[0]
        folder = file.parent.name.lower() if file.parent != root else ""
        parts.setdefault(PART_FOLDERS.get(beginning) or PART_FOLDERS.get(folder, ""), []).append(file)
    if not parts or set(parts) == {""}:
        return {"": list(files)}, []
    if "train" not in parts:
        if "" in parts or len(parts) > 1:
            raise DataError(
                f"{root}: has archives of {', '.join(p for p in parts if p)} but none whose name begins with train. "
                "Name the training part so."
            )
        return {"": list(files)}, []
    beside = parts.pop("", [])
    notice = (
        f"Only the parts {', '.join(parts)} are used; {', '.join(file.name for file in beside)} beside them ignored."
    )
    return parts, [notice] if beside else []


def _found(source: Source, files: Sequence[Path], is_part: bool) -> Found:
    where, suffix = source.source, files[0].suffix.lower()
    if suffix == ".parquet":
        return by_row(where, files)
    members = [list_members(file) for file in files]
    found = by_key(where, members) if suffix == ".tar" else None
    found = found or by_pair(where, members, source, is_part=is_part)
    return found or by_folder(where, members, is_part=is_part)


def _agreed(root: Path, found: Mapping[str, Found]) -> tuple[Sequence[str] | None, dict[str, Found]]:
    """The classes of all parts, and each part with its labels or tags in their order. Without names masks have None."""
    said = {
        part: "masks" if each.masks is not None else "one class" if each.tags is None else "several"
        for part, each in found.items()
    }
    if len(set(said.values())) > 1:
        raise DataError(
            f"{root}: images have {' and '.join(f'{what} in {part}' for part, what in said.items())}. "
            "Give all parts the same."
        )
    named = {each.classes for each in found.values()}
    if named == {None}:
        return _by_number(root, found)
    if len(named) == 1:
        return named.pop(), dict(found)
    if None in named:
        raise DataError(f"{root}: classes have names in one part and only numbers in another. Give all of them names.")
    if "masks" in said.values():
        raise DataError(f"{root}: its parts do not agree on the names of the classes. Give all the same classes.txt.")
    classes = sorted({name for names in named for name in names or ()})
    return classes, {part: _in_order(each, classes) for part, each in found.items()}


def _in_order(found: Found, classes: Sequence[str]) -> Found:
    places = np.array([classes.index(name) for name in found.classes or ()], np.int64)
    if found.tags is None:
        return found._replace(labels=places[found.labels])
    tags = np.zeros((len(found.tags), len(classes)), np.float32)
    tags[:, places] = found.tags
    return found._replace(tags=tags)


def _by_number(root: Path, found: Mapping[str, Found]) -> tuple[Sequence[str] | None, dict[str, Found]]:
    """What `_agreed` gives where classes are numbers: their names are in a file beside the archives, if anywhere."""
    parts = dict(found)
    if any(each.masks is not None for each in found.values()):
        return listed_names(root / CLASS_NAMES[0]), parts
    several = [each.tags.shape[1] for each in found.values() if each.tags is not None]
    largest = max(several) - 1 if several else max(int(each.labels.max(initial=-1)) for each in found.values())
    if not several and largest >= (total := sum(len(each.labels) for each in found.values())):
        raise DataError(
            f"{root}: the largest label is {largest}, but there are {total} images. Labels are whole numbers "
            "0..K-1, and each class needs images: renumber them, or give names."
        )
    classes = _class_names(root, largest)
    for part, each in found.items():
        if each.tags is not None:
            wider = np.zeros((len(each.tags), len(classes)), np.float32)
            wider[:, : each.tags.shape[1]] = each.tags
            parts[part] = each._replace(tags=wider)
    return classes, parts


def _class_names(root: Path, largest: int) -> Sequence[str]:
    """Names for the labels 0..largest: from a file beside the archives, else the numbers themselves."""
    file = next((root / name for name in CLASS_NAMES if (root / name).is_file()), None)
    if file is None:
        return [str(label) for label in range(largest + 1)]
    names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if largest >= len(names):
        raise DataError(f"{file}: names {len(names)} classes, and the largest label is {largest}. Name every class.")
    return names


def _rows(found: Found, part: str) -> Iterator[tuple[str, Labels]]:
    """The parts that archives hold and the rows of each."""
    if part or found.parts is None:
        yield part or "train", np.arange(len(found.labels))
        return
    for number, name in enumerate(PARTS):
        rows = np.flatnonzero(found.parts == number)
        if len(rows) or name == "train":
            yield name, rows
