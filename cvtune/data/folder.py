"""Folders of images: `train/<class>/*` with `val/` and `test/`, or one `<class>/*` that is split."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from cvtune.data.assemble import make_listing
from cvtune.data.compact import FileItems, Texts
from cvtune.data.listing import Labelled, Listing
from cvtune.errors import DataError, did_you_mean
from cvtune.printable import printable
from cvtune.sections import Source

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
    *(".npy", ".dcm", ".dicom"),
)
IMAGES = "images"  # beside masks; see `segmentation`
PART_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read(root: Path, source: Source) -> Listing:
    """Lists the image files under `root`. Nested folders belong to their class; hidden files and folders to none.

    Raises:
        DataError: the folder is missing, or holds no classes that can be used.
    """
    if not root.is_dir():
        near = did_you_mean(root.name, [p.name for p in folders_in(root.parent)]) if root.parent.is_dir() else ""
        raise DataError(f"{source.source}: no such folder. Check the path. {near}".rstrip())
    part_folders, notices = _part_folders(root)
    files: dict[str, dict[str, list[str]]] = {}  # names below root: a million Paths would take half a GB
    ignored: list[Path] = []
    linked: list[Path] = []
    for part, folder in part_folders.items():
        files[part] = {}
        for class_folder in folders_in(folder):
            found = files_below(class_folder)
            files[part][class_folder.name] = [str(path)[len(f"{root}/") :] for path in found.images]
            ignored += found.ignored
            linked += found.linked
    classes = sorted({name for by_class in files.values() for name in by_class})
    if not any(names for by_class in files.values() for names in by_class.values()):
        raise DataError(_no_classes(part_folders["train"], ignored))
    if ignored:
        notices.append(f"{len(ignored)} files without an image's extension were ignored, {_example(root, ignored)}.")
    notices += not_followed(root, linked)
    _refuse_masks(root, files["train"])
    parts = {part: _labelled(root, by_class, classes) for part, by_class in files.items()}
    whole = part_folders == {"train": root}
    return make_listing(source, classes, parts, whole=whole, root=root, notices=notices)


def not_followed(root: Path, linked: list[Path]) -> list[str]:
    """A notice of links to folders that `files_below` has met, if any."""
    if not linked:
        return []
    return [f"{len(linked)} links to folders were not followed, {_example(root, linked)}: link the images in them."]


def _example(root: Path, paths: list[Path]) -> str:
    return f"for example {printable(str(paths[0].relative_to(root)))}"


def _no_classes(folder: Path, ignored: list[Path]) -> str:
    """What to do with a folder in which images lie without folders of classes, or none at all."""
    files = [p.name for p in folder.iterdir() if p.is_file()]
    loose = sorted(name for name in files if is_image(name))
    if not loose:
        ends = Counter(Path(name).suffix or "no extension" for name in [*files, *(path.name for path in ignored)])
        found = ", ".join(f"{count} {end}" for end, count in ends.most_common(4)) or "no file"
        return (
            f"{folder}: is no data set: there is no image in it or in its folders (but {found}). Images end in "
            f"{', '.join(EXTENSIONS)}; name the folder that holds one folder of them per class."
        )
    begin = Counter(match[0] for name in loose if (match := re.match(r"[A-Za-z]+(?=[-_. ]*\d+\.)", name)))
    advice = "Give each class a folder of its own, for example cats/1.jpg and dogs/1.jpg."
    if 2 <= len(begin) <= len(loose) // 2 and sum(begin.values()) > 0.9 * len(loose):
        shown = ", ".join(f"{name} ({count})" for name, count in begin.most_common(3))
        advice = (
            f"Their names seem to say the class, {shown}: write a manifest, a .csv with the columns path and label "
            f"({loose[0]},{next(iter(begin))}), or give each class a folder of its own."
        )
    return f"{folder}: has no class folders ({len(loose)} images lie directly in it). {advice}"


def _refuse_masks(root: Path, by_class: Mapping[str, list[str]]) -> None:
    """Refuses images/ with a folder of the same names beside it: its masks, under a name that says something else.

    Raises:
        DataError: it looks so.
    """
    images = {Path(name).stem for name in by_class.get(IMAGES, [])}
    for other, names in by_class.items():
        shared = images & {Path(name).stem for name in names}
        if other != IMAGES and len(by_class) <= 4 and len(shared) > 0.9 * len(images) > 0:
            raise DataError(
                f"{root}: {len(shared)} of {len(images)} files in {IMAGES}/ have one of the same name in {other}/, so "
                f"these look like masks and not like two classes. Rename {other}/ to masks/, or say --set "
                f"{shlex.quote(f'data.masks={other}')} --set model.name=small_unet."
            )


def _part_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each part, and notices. A `train` without folders inside is a class (of vehicles, say)."""
    parts: dict[str, Path] = {}
    others: list[str] = []
    for folder in folders_in(root):
        part = PART_FOLDERS.get(folder.name.lower())
        if part is None or not folders_in(folder):
            others.append(folder.name)
        elif part in parts:
            raise DataError(
                f"{root}: {parts[part].name!r} and {folder.name!r} both look like the {part} part. Keep one of them."
            )
        else:
            parts[part] = folder
    if not parts:
        return {"train": root}, []
    if "train" not in parts:
        found = ", ".join(folder.name for folder in parts.values())
        raise DataError(
            f"{root}: has {found} but no train folder. Name the training part 'train', or use one folder per class "
            "without parts and it is split."
        )
    notice = f"Only the parts {', '.join(parts)} are used; {', '.join(others)} beside them ignored."
    return parts, [notice] if others else []


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}), so its images would be missing. "
        "Make it readable for you, or move it elsewhere."
    ) from error


def is_image(name: str, extensions: tuple[str, ...] = EXTENSIONS) -> bool:
    """Whether a file of this name is taken for an image; hidden ones are not."""
    return not name.startswith(".") and name.lower().endswith(extensions)


class Below(NamedTuple):
    """What lies below a folder, each sorted.

    Attributes:
        images: files that have an image's extension, and links to such.
        ignored: other files, hidden ones too.
        linked: links to folders, which are not followed: they may lead round in a circle.
    """

    images: list[Path]
    ignored: list[Path]
    linked: list[Path]


def files_below(top: Path, extensions: tuple[str, ...] = EXTENSIONS) -> Below:
    """The files below a folder; what is in hidden folders is not even ignored.

    Raises:
        DataError: a folder cannot be listed.
    """
    below = Below([], [], [])
    for base, folders, names in os.walk(top, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below.linked.extend(path for name in folders if (path := Path(base, name)).is_symlink())
        for name in names:
            (below.images if is_image(name, extensions) else below.ignored).append(Path(base, name))
    return Below(*map(sorted, below))


def _labelled(root: Path, by_class: Mapping[str, list[str]], classes: list[str]) -> Labelled:
    files = [by_class.get(name, []) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(names) for names in files])
    items = FileItems(root, Texts.of(itertools.chain.from_iterable(files)))
    return Labelled(items, labels.astype(np.int64))
