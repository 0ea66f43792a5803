"""Folders inside archives, read as on a disk: `<class>/*`, `train/<class>/*`, or `images/` and `masks/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cvtune.data.folder import EXTENSIONS, IMAGES, PART_FOLDERS, is_image
from cvtune.data.listing import PARTS, Labels
from cvtune.data.masks import class_names
from cvtune.data.members import Found, Members, items_of
from cvtune.data.packed import Packed
from cvtune.data.segmentation import CLASSES, LISTS, MASK_EXTENSIONS, below, pair
from cvtune.errors import DataError
from cvtune.sections import Source


def by_folder(where: str, members: Sequence[Members], *, is_part: bool) -> Found:
    """The images of zips or tars; `is_part`: they are one part of the data, and no folder inside names another.

    A folder around everything (`photos/cat/1.jpg` in photos.zip) is looked through.

    Raises:
        DataError: there are no class folders, two of one part, or parts without train.
    """
    which = np.array(
        [(a, i) for a, each in enumerate(members) for i, name in enumerate(each.names) if is_image(_file(name))],
        np.int64,
    ).reshape(-1, 2)
    names = [members[a].names[i] for a, i in which.tolist()]
    inside = _around(names, is_part)
    part_of, beside = ({}, set()) if is_part else _parts(where, [name[len(inside) :] for name in names])
    parts, labels, classes = _sorted_into(names, len(inside), part_of)
    good = np.flatnonzero(labels >= 0)
    if not len(good):
        raise DataError(_no_classes(where, members, int(np.count_nonzero(parts >= 0))))
    by_path = np.array(sorted(good.tolist(), key=lambda i: names[i].replace("/", "\0")))  # as Paths are sorted
    order = by_path[np.lexsort((labels[by_path], parts[by_path], which[by_path, 0]))]
    return Found(
        items=items_of(members, which[order]),
        labels=labels[order],
        classes=tuple(classes),
        parts=parts[order] if part_of else None,
        ignored=[name for each in members for name in each.names if _is_lost(name)],
        inside=inside.rstrip("/"),
        notices=_beside(part_of, beside),
    )


def by_pair(where: str, members: Sequence[Members], source: Source, *, is_part: bool) -> Found | None:
    """The images and masks of zips or tars that have folders for both, see `segmentation.pair`; None if they have not.

    Raises:
        DataError: as `segmentation.pair`, or a list of names cannot be read.
    """
    which = [(a, i) for a, each in enumerate(members) for i in range(len(each.names))]
    names = [members[a].names[i] for a, i in which]
    if not has_sides(names, source.masks, is_part=is_part):
        return None
    inside = _around_pairs(names, is_part)
    paths = [name[len(inside) :] if name.startswith(inside) else "" for name in names]
    places = np.array(which, np.int64).reshape(-1, 2)
    texts = {path: i for i, path in enumerate(paths) if path in (*LISTS, CLASSES)}
    read = {path: _text(items_of(members, places[[i]]).at(0)) for path, i in texts.items()}
    named = read.pop(CLASSES, None)
    pairs = pair(f"{where}/{inside}".rstrip("/"), source, paths, read)
    images, masks = (np.concatenate(list(side.values())) for side in (pairs.images, pairs.masks))
    parts = np.repeat([PARTS.index(part) for part in pairs.images], [len(rows) for rows in pairs.images.values()])
    return Found(
        items=items_of(members, places[images]),
        labels=np.zeros(len(images), np.int64),
        classes=None if named is None else tuple(class_names(named, f"{where}/{CLASSES}")),
        masks=items_of(members, places[masks]),
        parts=None if is_part or set(pairs.images) == {"train"} else parts.astype(np.int64),
        inside=inside.rstrip("/"),
        notices=tuple(pairs.notices),
    )


def has_sides(names: Sequence[str], masks: str, *, is_part: bool = False) -> bool:
    """Whether the files of an archive lie in folders for images and for `masks`."""
    inside = _around_pairs(names, is_part)
    paths = [name[len(inside) :] for name in names if name.startswith(inside)]
    return all(any(below(path, side) is not None for path in paths) for side in (IMAGES, masks))


def _around_pairs(names: Sequence[str], is_part: bool) -> str:
    return _around([name for name in names if is_image(_file(name), (*EXTENSIONS, *MASK_EXTENSIONS))], is_part)


def _text(item: Packed) -> str:
    try:
        return item.read().decode()
    except (OSError, ValueError) as error:
        raise DataError(f"{item}: cannot be read ({error}). Write one name per line, as UTF-8.") from error


def _sorted_into(names: Sequence[str], start: int, part_of: Mapping[str, int]) -> tuple[Labels, Labels, list[str]]:
    """Part and class of each name, read from `start`, -1 where it has none; and the sorted names of the classes."""
    ids: dict[str, int] = {}
    parts, labels = np.zeros(len(names), np.int64), np.full(len(names), -1)
    for i, name in enumerate(names):
        if part_of:
            top, _, rest = name[start:].partition("/")
            parts[i] = part_of.get(top, -1)
        else:
            rest = name[start:]
        folder, slash, _ = rest.partition("/")
        if slash and parts[i] >= 0:
            labels[i] = ids.setdefault(folder, len(ids))
    rank = np.argsort(np.argsort(np.array(list(ids), object))).astype(np.int64)  # of each id among the sorted names
    labels[labels >= 0] = rank[labels[labels >= 0]]
    return parts, labels, sorted(ids)


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
