"""Images with masks by folders: `images/` and `masks/`, split by lists of names, by folders, or by us.

`pair` knows the layout by names alone, so that it is the same on a disk and in an archive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cvtune.data.compact import FileItems, Rows, Texts
from cvtune.data.folder import EXTENSIONS, IMAGES, PART_FOLDERS, files_below, folders_in, is_image, not_followed
from cvtune.data.listing import PARTS, Labelled, Listing
from cvtune.data.masks import listed_names, segmented
from cvtune.errors import DataError, did_you_mean
from cvtune.sections import Source

MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")  # none that loses values, as JPEG does
LISTS = {f"{part}.txt": part for part in PARTS}  # files that name the images of a part
CLASSES = "classes.txt"  # one class name per line


class Pairs(NamedTuple):
    """Images and their masks, as positions among the paths that `pair` was given."""

    images: dict[str, Rows]  # of each part, int64 (N,)
    masks: dict[str, Rows]
    notices: list[str]


def looks_like_one(root: Path, source: Source) -> bool:
    """Whether a folder, or its train folder, holds images/ and masks/ (or what `data.masks` names).

    Raises:
        DataError: `data.masks` names a folder that is not there.
    """
    if not root.is_dir():
        return False
    inside = [root, *(folder for folder in folders_in(root) if PART_FOLDERS.get(folder.name.lower()) == "train")]
    if any((folder / IMAGES).is_dir() and (folder / source.masks).is_dir() for folder in inside):
        return True
    if source.masks != type(source).model_fields["masks"].default:
        there = [folder.name for folder in folders_in(root)]
        raise DataError(
            f"{root}: data.masks = {source.masks!r} is no folder there. {did_you_mean(source.masks, there)}"
        )
    return False


def read(root: Path, source: Source, cache: Path | None, workers: int) -> Listing:
    """Lists the images and masks below a folder, see `pair`. `classes.txt` may name the classes, line n those of
    value n - 1.

    Raises:
        DataError: see `pair` and `segmented`.
    """
    top = [root, *(folder for folder in folders_in(root) if folder.name.lower() in PART_FOLDERS)]
    kept = {IMAGES: EXTENSIONS, source.masks: MASK_EXTENSIONS}
    sides = [(folder / name, ends) for folder in top for name, ends in kept.items() if (folder / name).is_dir()]
    walked = [files_below(folder, ends) for folder, ends in sides]
    paths = [file.relative_to(root).as_posix() for side in walked for file in side.images]
    lists = {name: _text(root / name) for name in LISTS if (root / name).is_file()}
    found = pair(str(root), source, paths, lists)
    items = FileItems(root, Texts.of(paths))
    return segmented(
        source,
        listed_names(root / CLASSES),
        {part: labelled(items.take(rows), items.take(found.masks[part])) for part, rows in found.images.items()},
        root=root,
        notices=[*found.notices, *not_followed(root, [link for side in walked for link in side.linked])],
        cache=cache,
        workers=workers,
    )


def labelled(images: Sequence[Path], masks: Sequence[Path]) -> Labelled:
    """A part whose labels are unknown until its masks are looked at."""
    return Labelled(images, np.zeros(len(images), np.int64), masks=masks)


def pair(where: str, source: Source, paths: Sequence[str], lists: Mapping[str, str]) -> Pairs:
    """Pairs images/NAME.jpg with masks/NAME.png; NAME may stand in folders, the same ones in both.

    train/images/NAME.jpg is the same as images/train/NAME.jpg. `lists` are the contents of `train.txt`, `val.txt` and
    `test.txt`, which name the images of a part, one per line, with or without extension. Without them images/train,
    images/val and images/test are the parts; without those all are train.

    Raises:
        DataError: there are no images, two of one name, images without a mask (above `max_corrupt`), or a list names
            what is not there.
    """
    images = _by_name(where, paths, IMAGES, EXTENSIONS)
    masks = _by_name(where, paths, source.masks, MASK_EXTENSIONS)
    if not images:
        raise DataError(f"{where}/{IMAGES}: holds no images ({', '.join(EXTENSIONS)}).")
    listed = _lists(where, lists, images)
    parts = listed or _part_folders(images) or {"train": list(images)}
    used = [name for names in parts.values() for name in names]
    notices = _unpaired(where, source, used, paths, images, masks)
    if listed and len(used) < len(images):
        notices.append(f"{len(images) - len(used)} images stand in no list and are ignored.")
    whole = {part: [name for name in names if name in masks] for part, names in parts.items()}
    return Pairs(_rows(whole, images), _rows(whole, masks), notices)


def _rows(parts: Mapping[str, Sequence[str]], positions: Mapping[str, int]) -> dict[str, Rows]:
    return {part: np.array([positions[name] for name in names], np.int64) for part, names in parts.items()}


def _by_name(where: str, paths: Sequence[str], side: str, extensions: tuple[str, ...]) -> dict[str, int]:
    """The positions of the files of one side by their path in it without extension, in the order of that."""
    found: dict[str, int] = {}
    for position, path in enumerate(paths):
        name = below(path, side)
        if name is None or not is_image(name.rpartition("/")[2], extensions):
            continue
        name = name.rpartition(".")[0]
        if name in found:
            raise DataError(f"{where}: {paths[found[name]]} and {path} have the same name. Keep one of them.")
        found[name] = position
    return dict(sorted(found.items()))


def below(path: str, side: str) -> str | None:
    """'train/a.png' for 'images/train/a.png' and for 'train/images/a.png' on the side of images; None elsewhere."""
    top, _, rest = path.partition("/")
    if top == side:
        return rest
    if top.lower() in PART_FOLDERS and rest.startswith(f"{side}/"):
        return f"{top}/{rest[len(side) + 1 :]}"
    return None


def _lists(where: str, lists: Mapping[str, str], images: Mapping[str, int]) -> dict[str, list[str]]:
    """The names in each part's list; empty if there are no lists."""
    if lists and "train.txt" not in lists:
        raise DataError(f"{where}: has {', '.join(lists)} but no train.txt. Add it.")
    owner: dict[str, str] = {}
    for file, text in lists.items():
        for name in _names_in(f"{where}/{file}", text, images):
            if owner.setdefault(name, file) != file:
                raise DataError(f"{where}/{file}: {name!r} is in {owner[name]}, too. An image belongs to one part.")
    return {LISTS[file]: [name for name, owned in owner.items() if owned == file] for file in lists}


def _names_in(file: str, text: str, images: Mapping[str, int]) -> list[str]:
    names = []
    for line in filter(None, map(str.strip, text.splitlines())):
        bare = line.removeprefix(f"{IMAGES}/")
        name = bare if bare in images else str(Path(bare).with_suffix("")) if "." in bare else bare
        if name not in images:
            raise DataError(f"{file}: names {line!r}, and there is no such image. {did_you_mean(name, images, 3)}")
        names.append(name)
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Write one name per line, as UTF-8.") from error


def _part_folders(images: Mapping[str, int]) -> dict[str, list[str]]:
    """The names below images/train, images/val and images/test; empty unless all are in such folders."""
    parts: dict[str, list[str]] = {}
    for name in images:
        part = PART_FOLDERS.get(name.partition("/")[0].lower()) if "/" in name else None
        if part is None:
            return {}
        parts.setdefault(part, []).append(name)
    return parts if "train" in parts else {}


def _unpaired(
    where: str,
    source: Source,
    used: Sequence[str],
    paths: Sequence[str],
    images: Mapping[str, int],
    masks: Mapping[str, int],
) -> list[str]:
    """Notices of images without masks and masks without images.

    Raises:
        DataError: too many of the images that are used have no mask.
    """
    bare = [name for name in used if name not in masks]
    if len(bare) > source.max_corrupt * len(used):
        other = next((paths[masks[name]] for name in masks if name not in images), "")
        raise DataError(
            f"{where}: {len(bare)} of {len(used)} images have no mask in {source.masks}/, for example "
            f"{paths[images[bare[0]]]}{f'; but there is {other}' if other else ''}. A mask has the name of its image "
            f"and one of {', '.join(MASK_EXTENSIONS)}: rename or add them, pair them in a manifest (columns path and "
            f"mask), take the images away, or raise data.max_corrupt ({source.max_corrupt:g})."
        )
    notices = []
    if bare:
        notices.append(f"{len(bare)} images have no mask and are skipped, for example {paths[images[bare[0]]]}.")
    orphans = [name for name in masks if name not in images]
    if orphans:
        notices.append(f"{len(orphans)} masks have no image and are ignored, for example {paths[masks[orphans[0]]]}.")
    return notices
