"""Classes by folders inside archives: `<class>/<file>` or `train/<class>/<file>`, as `folder` finds them on a disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvtune.data.folder import PART_FOLDERS, is_image
from cvtune.data.listing import PARTS
from cvtune.data.members import Found, Members, items_of
from cvtune.errors import DataError


def by_folder(where: str, members: Sequence[Members], *, is_part: bool) -> Found:
    """The images of zips or tars; `is_part`: they are one part of the data, and no folder inside names another.

    A folder around everything (`photos/cat/1.jpg` in photos.zip) is looked through.

    Raises:
        DataError: there are no class folders, two of one part, or parts without train.
    """
    images = [(a, i) for a, each in enumerate(members) for i, name in enumerate(each.names) if is_image(_file(name))]
    names = [members[a].names[i] for a, i in images]
    inside = _around(names, is_part)
    part_of, beside = ({}, set()) if is_part else _parts(where, [name[len(inside) :] for name in names])
    ids: dict[str, int] = {}
    chosen: list[tuple[int, int, list[str], tuple[int, int]]] = []  # part, class, path, which: sorted in this order
    loose = 0
    for name, which in zip(names, images, strict=True):
        path = name[len(inside) :].split("/")
        part = part_of.get(path[0], -1) if len(path) > 1 else -1
        if part_of and part < 0:
            continue
        folders = path[1:] if part_of else path
        if len(folders) < 2:
            loose += 1
            continue
        chosen.append((max(part, 0), ids.setdefault(folders[0], len(ids)), path, which))
    if not chosen:
        raise DataError(_no_classes(where, members, loose))
    classes = sorted(ids)
    rank = np.argsort(np.argsort(list(ids)))  # of each id among the sorted classes
    chosen.sort(key=lambda each: (each[3][0], each[0], rank[each[1]], each[2]))
    return Found(
        items=items_of(members, [each[3] for each in chosen]),
        labels=np.array([rank[each[1]] for each in chosen], np.int64),
        classes=tuple(classes),
        parts=np.array([each[0] for each in chosen], np.int64) if part_of else None,
        ignored=[name for each in members for name in each.names if _is_lost(name)],
        inside=inside.rstrip("/"),
        notices=_beside(part_of, beside),
    )


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _is_lost(name: str) -> bool:
    """Whether a file lies in a folder and is no image, so that its owner may miss it."""
    return "/" in name and not is_image(_file(name))


def _around(names: Sequence[str], is_part: bool) -> str:
    """The folders that hold all images and the class folders, such as 'photos/'; '' if there are none."""
    around = ""
    while names and all(name.count("/", len(around)) >= 2 for name in names):
        top = names[0][: names[0].index("/", len(around)) + 1]
        folder = top[len(around) : -1].lower()
        if (folder in PART_FOLDERS and not is_part) or not all(name.startswith(top) for name in names):
            break
        around = top
    return around


def _parts(where: str, names: Sequence[str]) -> tuple[dict[str, int], set[str]]:
    """Which top folders are which part, as positions in PARTS, and the other ones."""
    tops = {name.split("/", 1)[0] for name in names if name.count("/") >= 2}
    others = {name.split("/", 1)[0] for name in names if name.count("/") == 1}
    part_of: dict[str, int] = {}
    for top in sorted(tops):
        part = PART_FOLDERS.get(top.lower())
        if part is None:
            others.add(top)
        elif PARTS.index(part) in part_of.values():
            raise DataError(f"{where}: {top!r} and another folder inside both look like the {part} part. Keep one.")
        else:
            part_of[top] = PARTS.index(part)
    if part_of and 0 not in part_of.values():
        raise DataError(
            f"{where}: has {', '.join(part_of)} inside but no train folder. Name the training part 'train', or use one "
            "folder per class without parts and it is split."
        )
    return part_of, others - part_of.keys()


def _beside(part_of: dict[str, int], beside: set[str]) -> tuple[str, ...]:
    if not part_of or not beside:
        return ()
    return (f"Only the parts {', '.join(part_of)} are used; {', '.join(sorted(beside))} beside them ignored.",)


def _no_classes(where: str, members: Sequence[Members], loose: int) -> str:
    nested = [name for each in members for name in each.names if name.lower().endswith((".zip", ".tar", ".parquet"))]
    if nested:
        return f"{where}: holds the archive {nested[0]!r}. Archives in archives are not read: take it out."
    return (
        f"{where}: has no class folders inside ({loose} images lie directly in it). Give each class a folder of its "
        "own, for example cats/1.jpg and dogs/1.jpg, or use a tar in WebDataset's layout (1.jpg and 1.cls)."
    )
