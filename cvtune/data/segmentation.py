"""Folders for segmentation: `images/` and `masks/`, split by lists of names, by folders, or by us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cvtune.data.folder import EXTENSIONS, PART_FOLDERS, files_below, folders_in
from cvtune.data.listing import PARTS, Labelled, Listing
from cvtune.data.masks import listed_names, segmented
from cvtune.errors import DataError, did_you_mean
from cvtune.sections import Source

IMAGES = "images"
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")  # none that loses values, as JPEG does


def looks_like_one(root: Path, source: Source) -> bool:
    """Whether a folder holds images/ and masks/ (or what `data.masks` names).

    Raises:
        DataError: `data.masks` names a folder that is not there.
    """
    if (root / IMAGES).is_dir() and (root / source.masks).is_dir():
        return True
    if source.masks != type(source).model_fields["masks"].default and root.is_dir():
        there = [folder.name for folder in folders_in(root)]
        raise DataError(
            f"{root}: data.masks = {source.masks!r} is no folder there. {did_you_mean(source.masks, there)}"
        )
    return False


def read(root: Path, source: Source, cache: Path | None, workers: int) -> Listing:
    """Pairs images/NAME.jpg with masks/NAME.png; NAME may stand in folders, the same ones in both.

    `train.txt`, `val.txt` and `test.txt` list the names of a part, one per line, with or without extension. Without
    them images/train, images/val and images/test are the parts; without those we split. `classes.txt` may name the
    classes, line n those of value n - 1.

    Raises:
        DataError: an image without a mask (above `max_corrupt`), a list that names what is not there, see `segmented`.
    """
    images = _by_name(root / IMAGES, EXTENSIONS)
    masks = _by_name(root / source.masks, MASK_EXTENSIONS)
    if not images:
        raise DataError(f"{root / IMAGES}: holds no images ({', '.join(EXTENSIONS)}).")
    lists = _lists(root, images)
    parts = lists or _part_folders(images) or {"train": list(images)}
    used = [name for names in parts.values() for name in names]
    notices = _unpaired(root, source, used, images, masks)
    if lists and len(used) < len(images):
        notices.append(f"{len(images) - len(used)} images stand in no list and are ignored.")
    found = {part: _labelled([name for name in names if name in masks], images, masks) for part, names in parts.items()}
    return segmented(
        source,
        listed_names(root / "classes.txt"),
        found,
        root=root,
        notices=notices,
        cache=cache,
        workers=workers,
    )


def _by_name(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    """The files below a folder by their path in it without extension, in the order of that."""
    found: dict[str, Path] = {}
    for path in files_below(folder, extensions)[0]:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {path.name} have the same name. Keep one of them.")
        found[name] = path
    return dict(sorted(found.items()))


def _lists(root: Path, images: Mapping[str, Path]) -> dict[str, list[str]]:
    """The names in each part's list; empty if there are no lists."""
    files = {part: root / f"{part}.txt" for part in PARTS if (root / f"{part}.txt").is_file()}
    if files and "train" not in files:
        raise DataError(f"{root}: has {', '.join(f'{part}.txt' for part in files)} but no train.txt. Add it.")
    owner: dict[str, str] = {}
    for part, path in files.items():
        for name in _names_in(path, images):
            if owner.setdefault(name, part) != part:
                raise DataError(f"{path}: {name!r} is in {owner[name]}.txt, too. An image belongs to one part.")
    return {part: [name for name, owned in owner.items() if owned == part] for part in files}


def _names_in(path: Path, images: Mapping[str, Path]) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Write one name per line, as UTF-8.") from error
    names = []
    for line in lines:
        bare = line.removeprefix(f"{IMAGES}/")
        name = bare if bare in images else str(Path(bare).with_suffix("")) if "." in bare else bare
        if name not in images:
            raise DataError(f"{path}: names {line!r}, and there is no such image. {did_you_mean(name, images, 3)}")
        names.append(name)
    return names


def _part_folders(images: Mapping[str, Path]) -> dict[str, list[str]]:
    """The names below images/train, images/val and images/test; empty unless all are in such folders."""
    parts: dict[str, list[str]] = {}
    for name in images:
        part = PART_FOLDERS.get(name.partition("/")[0].lower()) if "/" in name else None
        if part is None:
            return {}
        parts.setdefault(part, []).append(name)
    return parts if "train" in parts else {}


def _unpaired(
    root: Path, source: Source, used: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path]
) -> list[str]:
    """Notices of images without masks and masks without images.

    Raises:
        DataError: too many of the images that are used have no mask.
    """
    bare = [name for name in used if name not in masks]
    if len(bare) > source.max_corrupt * len(used):
        raise DataError(
            f"{root}: {len(bare)} of {len(used)} images have no mask in {source.masks}/, for example "
            f"{images[bare[0]].relative_to(root)}. A mask has the name of its image and one of "
            f"{', '.join(MASK_EXTENSIONS)}: add them, take the images away, or raise data.max_corrupt "
            f"({source.max_corrupt:g})."
        )
    notices = []
    if bare:
        example = images[bare[0]].relative_to(root)
        notices.append(f"{len(bare)} images have no mask and are skipped, for example {example}.")
    orphans = [name for name in masks if name not in images]
    if orphans:
        example = masks[orphans[0]].relative_to(root)
        notices.append(f"{len(orphans)} masks have no image and are ignored, for example {example}.")
    return notices


def _labelled(names: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path]) -> Labelled:
    unknown = np.zeros(len(names), np.int64)  # until the masks are looked at
    return Labelled([images[name] for name in names], unknown, masks=[masks[name] for name in names])
