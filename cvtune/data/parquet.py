"""Parquet files with an image and a label in each row, as Hugging Face's `datasets` writes them among others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.data.compact import PackedItems, Texts, place
from cvtune.data.folder import PART_FOLDERS
from cvtune.data.listing import PARTS, Labels
from cvtune.data.members import Found
from cvtune.data.packed import MOST_BYTES, Packing
from cvtune.data.rows import image_column
from cvtune.errors import DataError, did_you_mean

_LABELS = ("label", "labels", "class", "cls", "target", "category", "y")  # the first one present counts
_SPLIT = "split"


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column of image files, and not only of their paths."""
    return image_column(_opened(path).schema_arrow) is not None


def by_row(where: str, paths: Sequence[Path]) -> Found:
    """The images of Parquet files in their order. Class names are those of Hugging Face's metadata, if there.

    Raises:
        DataError: a file is torn; it lacks the column of images, or of whole numbers or names as labels; a label is
            missing; a split is unknown; or a group of rows is too large to be read for a single image.
    """
    read = [_columns(path) for path in paths]
    named = [labels.dtype.kind in "OU" for labels, _, _ in read]
    if any(named) != all(named):
        raise DataError(f"{where}: labels are names in {paths[named.index(True)]} and numbers elsewhere. Use one kind.")
    labels = np.concatenate([labels for labels, _, _ in read])
    classes = next((names for _, _, names in read if names), None)
    if any(names not in (None, classes) for _, _, names in read):
        raise DataError(f"{where}: its files do not agree on the names of the classes. Write them anew with the same.")
    if any(named):
        unique, positions = np.unique(labels.astype(str), return_inverse=True)
        labels, classes = positions, tuple(unique.tolist())
    splits = [split for _, split, _ in read]
    parts = np.concatenate([s for s in splits if s is not None]) if all(s is not None for s in splits) else None
    counts = [len(labels) for labels, _, _ in read]
    rows = [np.arange(count) for count in counts]
    places = np.tile(np.array(place(0, offset=0, packing=Packing.ROW), np.int64), (len(labels), 1))
    places[:, 0] = np.repeat(np.arange(len(paths)), counts)
    places[:, 1] = np.concatenate(rows)
    items = PackedItems(tuple(paths), Texts.of(str(row) for row in places[:, 1]), places)
    return Found(items, labels.astype(np.int64), classes, parts)


def _opened(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet ({error}). Copy it again, or write it anew.") from error


def _columns(path: Path) -> tuple[npt.NDArray[Any], Labels | None, tuple[str, ...] | None]:
    """Labels (N,) as numbers or text, parts as positions in PARTS, and the class names by number."""
    file = _opened(path)
    schema = file.schema_arrow
    images = image_column(schema)
    if images is None:
        raise DataError(
            f"{path}: has no single column of image files, only {', '.join(schema.names)}. Store each image's bytes in "
            "a column 'image', or its path in a column 'path'."
        )
    _check_groups(path, file.metadata, images)
    name = next((name for name in _LABELS if name in schema.names), None)
    if name is None:
        raise DataError(
            f"{path}: has no column 'label', only {', '.join(schema.names)}. Name the column of classes so."
        )
    wanted = [name, *([_SPLIT] if _SPLIT in schema.names else [])]
    table = file.read(columns=wanted)
    labels = _labels(path, table.column(name))
    parts = _parts(path, table.column(_SPLIT)) if _SPLIT in wanted else None
    names = _class_names(path, schema.metadata or {}, name) if labels.dtype.kind == "i" else None
    return labels, parts, names


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


def _labels(path: Path, column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{path}: row {row} has no label. Fill it in, or remove the row.")
    values: npt.NDArray[Any] = column.to_numpy()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return values
    whole = pa.types.is_integer(column.type)
    if not whole or values.min(initial=0) < 0 or values.max(initial=0) >= 10**9:
        raise DataError(
            f"{path}: labels are {column.type}{f' from {values.min()} to {values.max()}' if whole else ''}. "
            "They must be whole numbers 0..K-1 or names, one per image."
        )
    return values.astype(np.int64)


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
        names = features.get(column, {}).get("names")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: its metadata 'huggingface' is not readable ({error}). Write it anew.") from error
    return tuple(str(name) for name in names) if isinstance(names, list) else None
