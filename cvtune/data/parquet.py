"""Parquet files with an image and its label, labels or mask in each row, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvtune.data.arrays import tags_of
from cvtune.data.compact import PackedItems, Texts, place
from cvtune.data.folder import PART_FOLDERS
from cvtune.data.listing import PARTS, Labels
from cvtune.data.members import Found
from cvtune.data.packed import MOST_BYTES, Packing
from cvtune.data.rows import image_column, mask_column
from cvtune.errors import DataError, did_you_mean
from cvtune.printable import first_line

_LABELS = ("label", "labels", "class", "cls", "target", "category", "y")  # the first one present counts
_SPLIT = "split"
_SAID = {
    "number": "numbers",
    "name": "names",
    "numbers": "lists of numbers",
    "names": "lists of names",
    "mask": "masks",
}


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column of image files, and not only of their paths."""
    return image_column(_opened(path).schema_arrow) is not None


class _Columns(NamedTuple):
    """What the columns of one file say.

    Attributes:
        labels: numbers or texts (N,), or lists of them; zeros where there are masks.
        kind: number, name, or mask; 'numbers' and 'names' of lists.
        parts: positions in PARTS.
        names: the class names by number.
    """

    labels: npt.NDArray[Any]
    kind: str
    parts: Labels | None
    names: tuple[str, ...] | None


def stores_masks(path: Path) -> bool:
    """Whether a Parquet file of images has a column of mask files, too."""
    return mask_column(_opened(path).schema_arrow) is not None


def by_row(where: str, paths: Sequence[Path]) -> Found:
    """The images of Parquet files in their order. Class names are those of Hugging Face's metadata, if there.

    A column of lists holds several labels per image; a column of files named mask (or annotation) holds masks.

    Raises:
        DataError: a file is torn; it lacks the column of images, or of masks, whole numbers or names as labels; a label
            is missing; a split is unknown; or a group of rows is too large to be read for a single image.
    """
    read = [_columns(path) for path in paths]
    kinds = [each.kind for each in read]
    if len(set(kinds)) > 1:
        other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
        raise DataError(
            f"{where}: labels are {_SAID[kinds[0]]} in {paths[0]} and {_SAID[kinds[other]]} in {paths[other]}. "
            "Use one kind."
        )
    classes = next((each.names for each in read if each.names), None)
    if any(each.names not in (None, classes) for each in read):
        raise DataError(f"{where}: its files do not agree on the names of the classes. Write them anew with the same.")
    labels = np.concatenate([each.labels for each in read])
    items = _items(paths, [len(each.labels) for each in read], Packing.ROW)
    splits = [each.parts for each in read if each.parts is not None]
    found = Found(
        items, np.zeros(len(labels), np.int64), classes, np.concatenate(splits) if len(splits) == len(read) else None
    )
    if kinds[0] == "mask":
        return found._replace(masks=_items(paths, [len(each.labels) for each in read], Packing.MASK_ROW))
    if kinds[0] in ("names", "numbers"):
        return _several(found, labels.tolist(), kinds[0] == "names")
    if kinds[0] == "name":
        unique, labels = np.unique(labels.astype(str), return_inverse=True)
        found = found._replace(classes=tuple(unique.tolist()))
    return found._replace(labels=labels.astype(np.int64))


def _several(found: Found, labels: list[list[Any]], named: bool) -> Found:
    every = {label for of_one in labels for label in of_one}
    if named:
        classes: Sequence[Any] = sorted(every)
    else:
        classes = range(max(max(every, default=-1) + 1, len(found.classes or ())))
    names = tuple(classes) if named else found.classes
    return found._replace(classes=names, tags=tags_of(labels, classes))


def _items(paths: Sequence[Path], counts: Sequence[int], packing: Packing) -> PackedItems:
    places = np.tile(np.array(place(0, offset=0, packing=packing), np.int64), (sum(counts), 1))
    places[:, 0] = np.repeat(np.arange(len(paths)), counts)
    places[:, 1] = np.concatenate([np.arange(count) for count in counts])
    return PackedItems(tuple(paths), Texts.of(str(row) for row in places[:, 1]), places)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a torn or damaged file makes pyarrow raise, at any read, into a DataError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException, ValueError) as error:  # the last: texts that are no UTF-8
        told = f"{path}: not readable as Parquet ({first_line(error)}). Copy it again, or write it anew."
        raise DataError(told) from error


def _opened(path: Path) -> Any:
    from pyarrow import parquet

    with _readable(path):
        return parquet.ParquetFile(path)


def _columns(path: Path) -> _Columns:
    file = _opened(path)
    schema = file.schema_arrow
    images, masks = image_column(schema), mask_column(schema)
    if images is None:
        raise DataError(
            f"{path}: has no single column of image files, only {', '.join(schema.names)}. Store each image's bytes in "
            "a column 'image', or its path in a column 'path'."
        )
    for column in filter(None, (images, masks)):
        _check_groups(path, file.metadata, column)
    name = None if masks else next((name for name in _LABELS if name in schema.names), None)
    if name is None and masks is None:
        raise DataError(
            f"{path}: has no column 'label' or 'mask', only {', '.join(schema.names)}. Name the column of classes, or "
            "of mask files, so."
        )
    wanted = [column for column in (name, _SPLIT) if column in schema.names]
    with _readable(path):
        table = file.read(columns=wanted)
        parts = _parts(path, table.column(_SPLIT)) if _SPLIT in wanted else None
        if name is None:
            return _Columns(np.zeros(file.metadata.num_rows, np.int64), "mask", parts, None)
        labels, kind = _labels(path, table.column(name))
    names = _class_names(path, schema.metadata or {}, name) if kind.startswith("number") else None
    return _Columns(labels, kind, parts, names)


def _check_groups(path: Path, metadata: Any, column: str) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
        if size > MOST_BYTES:
            raise DataError(
                f"{path}: {group.num_rows} rows of one group have {size / 2**30:.3g} GiB of images, which have to be "
                f"read for any one of them; the most is {MOST_BYTES / 2**30:.0f} GiB. Write it anew with "
                "row_group_size=256."
            )


def _labels(path: Path, column: Any) -> tuple[npt.NDArray[Any], str]:
    """The cells of a column of labels, and their kind, see `_Columns`."""
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        cells = np.empty(len(column), object)
        cells[:] = [cell or [] for cell in column.to_pylist()]
        _, kind = _labels(path, column.combine_chunks().flatten())
        return cells, f"{kind}s"
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{path}: row {row} has no label. Fill it in, or remove the row.")
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return values, "name"
    whole = pa.types.is_integer(column.type)
    if not whole or values.min(initial=0) < 0 or values.max(initial=0) >= 10**9:
        raise DataError(
            f"{path}: labels are {column.type}{f' from {values.min()} to {values.max()}' if whole else ''}. "
            "They must be whole numbers 0..K-1 or names, one per image, or lists of them."
        )
    return values.astype(np.int64), "number"


def _parts(path: Path, column: Any) -> Labels:
    names = [str(name) for name in column.to_pylist()]
    known: dict[str, int] = {}
    for name in dict.fromkeys(names):
        part = PART_FOLDERS.get(name.lower())
        if part is None:
            raise DataError(f"{path}: the split {name!r} is unknown. {did_you_mean(name, PART_FOLDERS)}")
        known[name] = PARTS.index(part)
    return np.array([known[name] for name in names], np.int64)


def _class_names(path: Path, metadata: Mapping[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """The names that `datasets` notes of a ClassLabel."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        feature = features.get(column, {})
        feature = feature[0] if isinstance(feature, list) and feature else feature.get("feature", feature)  # of a list
        names = feature.get("names")
    except (ValueError, AttributeError) as error:
        told = f"{path}: its metadata 'huggingface' is not readable ({first_line(error)}). Write it anew."
        raise DataError(told) from error
    return tuple(str(name) for name in names) if isinstance(names, list) else None
