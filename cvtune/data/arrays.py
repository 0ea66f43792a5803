"""Images, labels and masks that come as arrays (from .npz files and user code), checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvtune.data.assemble import make_listing
from cvtune.data.listing import Item, Labelled, Labels, Listing, Tags, Task
from cvtune.data.masks import segmented
from cvtune.data.rasters import channels_last
from cvtune.errors import DataError
from cvtune.sections import Source


def listing_of(
    source: Source,
    raw: Mapping[str, tuple[Any, Any]],
    classes: Sequence[str] | None,
    *,
    workers: int = 1,
    root: Path | None = None,
    notices: Sequence[str] = (),
) -> Listing:
    """A Listing of raw (images, labels) per part. What the labels are says what the task is:

    - whole numbers (N,) or (N, 1), a class per image: "classify";
    - float, bool or uint8 (N, K), 0..1 for each class and NaN where it is unknown: "multilabel";
    - masks, uint8 (N, H, W) or a sequence of uint8 (H, W) and of file paths: "segment".

    Without `classes` they are '0' .. 'K-1' up to the largest label.

    Raises:
        DataError: dtype or shape of images, kind or range of labels, lengths that differ, or see `make_listing`.
        ConfigError: see `make_listing`.
    """
    where = source.source
    names = None if classes is None else [str(name) for name in classes]
    task = _task_of(raw["train"][1])
    for part, (_, labels) in raw.items():
        if _task_of(labels) != task and len(labels):
            raise DataError(
                f"{where}: the labels of train are those of {task!r}, the labels of {part} those of "
                f"{_task_of(labels)!r}. Give all parts labels of one kind."
            )
    parts = {part: _labelled(f"{where}, {part}", task, *both) for part, both in raw.items()}
    if task == "segment":
        return segmented(source, names, parts, root=root, notices=notices, cache=None, workers=workers)
    whole = set(parts) == {"train"}
    named = _classes(where, parts, names, task)
    return make_listing(source, named, parts, whole=whole, root=root, notices=notices, task=task)


def _classes(where: str, parts: Mapping[str, Labelled], classes: list[str] | None, task: Task) -> list[str]:
    if task == "multilabel":
        widths = {part.tags.shape[1] for part in parts.values() if part.tags is not None}
        wanted = len(classes) if classes is not None else min(widths)
        if widths != {wanted}:
            raise DataError(
                f"{where}: the labels have {', '.join(map(str, sorted(widths)))} columns, but there are {wanted} "
                "classes. Give a column for each class, in every part."
            )
        return classes if classes is not None else [str(label) for label in range(wanted)]
    largest = max((int(part.labels.max(initial=-1)) for part in parts.values()), default=-1)
    if classes is None:
        return [str(label) for label in range(largest + 1)]
    if largest >= len(classes):
        raise DataError(
            f"{where}: label {largest} has no class name, there are {len(classes)}. "
            f"Labels are whole numbers 0..{len(classes) - 1}: name every class, or correct the labels."
        )
    return classes


def _task_of(labels: Any) -> Task:
    if not isinstance(labels, np.ndarray) and len(labels):
        if isinstance(labels[0], str | Path) or np.ndim(labels[0]) >= 2:
            return "segment"
        labels = np.asarray(labels)
    if np.ndim(labels) >= 3:
        return "segment"
    if np.ndim(labels) == 2 and (labels.dtype.kind in "fb" or (labels.dtype == np.uint8 and labels.shape[1] > 1)):
        return "multilabel"
    return "classify"


def _labelled(where: str, task: Task, images: Any, labels: Any) -> Labelled:
    items = check_images(where, images)
    if len(items) != len(labels):
        what = "mask" if task == "segment" else "label"
        raise DataError(
            f"{where}: {len(items)} images but {len(labels)} {what}s. Each image needs one {what}, in the same order."
        )
    unknown = np.zeros(len(items), np.int64)
    if task == "segment":
        return Labelled(items, unknown, masks=check_masks(where, labels))
    if task == "multilabel":
        return Labelled(items, unknown, tags=check_tags(where, labels))
    return Labelled(items, check_labels(where, labels))


def check_tags(where: str, tags: Any) -> Tags:
    """Float32 (N, K) in 0..1, or NaN where it is unknown whether an image shows a class."""
    array = np.asarray(tags, np.float32)
    outside = array[~np.isnan(array) & ~((array >= 0) & (array <= 1))]
    if len(outside):
        raise DataError(
            f"{where}: a label is {outside[0]:g}. Of several labels per image each is 0 (not shown) to 1 (shown), or "
            "NaN (unknown)."
        )
    return array


def tags_of(labels: Sequence[Iterable[Any]], classes: Sequence[Any]) -> Tags:
    """Float32 (N, K), 1 where the labels of an image hold a class."""
    position = {name: i for i, name in enumerate(classes)}
    tags = np.zeros((len(labels), len(classes)), np.float32)
    for row, found in enumerate(labels):
        tags[row, [position[name] for name in found]] = 1
    return tags


def check_masks(where: str, masks: Any) -> Sequence[Item]:
    """N masks: whole numbers 0..255, (N, H, W) or (N, H, W, 1), or a sequence of arrays (H, W) and of file paths."""
    items: list[Item] = []
    for i, mask in enumerate(masks):
        if isinstance(mask, str | Path):
            items.append(Path(mask).expanduser().absolute())
            continue
        array = np.asarray(mask)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim != 2 or array.dtype.kind not in "bui" or array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise DataError(
                f"{where}: mask {i} has dtype {array.dtype} and shape {array.shape}. A mask is (H, W) of whole "
                "numbers: classes from 0, and 255 where there is none."
            )
        items.append(array.astype(np.uint8))
    return items


def check_labels(where: str, labels: Any) -> Labels:
    """Labels as int64 (N,), from whole numbers (N,) or (N, 1) that are not negative."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" and array.size:
        raise DataError(
            f"{where}: labels are {array.dtype}. They must be whole numbers 0..K-1, one per image: "
            "convert them, for example with numpy.unique(labels, return_inverse=True)[1]."
        )
    if array.ndim != 1 and array.shape != (len(array), 1):
        raise DataError(
            f"{where}: labels have shape {array.shape}. Give one whole number per image, shape (N,), or of "
            "several labels per image uint8 or floats, (N, K)."
        )
    flat = array.reshape(-1).astype(np.int64)
    if flat.min(initial=0) < 0:
        raise DataError(f"{where}: label {flat.min()} is negative. Labels are whole numbers 0..K-1: renumber them.")
    return flat


def check_images(where: str, images: Any) -> Sequence[Item]:
    """N images: one array (N, H, W[, C]) of numbers, or a sequence of arrays (H, W[, C]) and of file paths.

    Which axis holds the channels: see `rasters.channels_last`.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        if images.ndim not in (3, 4):
            raise DataError(f"{where}: images have shape {images.shape}. Give (N, H, W) or (N, H, W, channels).")
        _check_image(f"{where}: images have", images.dtype, images.shape[1:])
        return list(images)
    items: list[Item] = []
    for i, image in enumerate(images):
        if isinstance(image, str | Path):
            items.append(Path(image).expanduser().absolute())
        else:
            array = np.asarray(image)
            _check_image(f"{where}: image {i} has", array.dtype, array.shape)
            items.append(array)
    return items


def _check_image(what: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.kind not in "buif":
        raise DataError(f"{what} dtype {dtype}. Images are numbers: uint8 (photos), uint16 or float32. Convert them.")
    if len(shape) not in (2, 3) or 0 in shape:
        raise DataError(f"{what} shape {shape}. An image is (H, W) or (H, W, C): transpose or reshape it.")
    try:
        channels_last(np.broadcast_to(np.zeros((), dtype), shape))
    except ValueError as error:
        raise DataError(f"{what} {error}.") from error
