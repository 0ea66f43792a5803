"""Manifests: a CSV or Parquet file with a row per image, which says where it lies and what is known of it.

| column | holds |
|---|---|
| `path` | the image file, relative to the manifest's folder, which it may not leave |
| `label` | its class; empty: the image is left out |
| or `labels` | its classes, separated by ';' (none: the cell is empty): several per image |
| or `label:NAME`, one per class | how far it is NAME, 0..1, empty where unknown. Rows of sum 1 throughout: soft labels of one class per image (a row of empty ones is left out); else several per image, as with `labels:NAME` |
| or `mask` | its mask, a path like that of the image |
| `split` | train, val or test; without the column we split |
| `group` | images with the same text stay in one part (a patient, a scene); empty: this image alone |
| `weight` | factor on its loss, above 0 |
"""  # noqa: E501 (a table)

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cvtune.data.arrays import tags_of
from cvtune.data.assemble import make_listing
from cvtune.data.folder import PART_FOLDERS
from cvtune.data.listing import PARTS, Item, Labelled, Labels, Listing, Tags, Task
from cvtune.data.masks import listed_names, segmented
from cvtune.errors import DataError, short
from cvtune.printable import first_line, printable, shortened
from cvtune.sections import Source

KINDS = ("label", "labels", "mask")
COLUMNS = ("path", *KINDS, "split", "group", "weight")
_SOFT = ("label:", "labels:")
_UNREADABLE = (pa.ArrowException, OSError, ValueError)  # the last: names or texts that are no UTF-8
_AS = "Write a table with commas as UTF-8, or Parquet."
Mask = npt.NDArray[np.bool_]
Texts = Sequence[str | None]  # the cells of a column; None where they are empty


def read(path: Path, source: Source, cache: Path | None, workers: int) -> Listing:
    """Lists the rows of a manifest. A file that is missing counts as corrupt when it is decoded.

    Raises:
        DataError: the manifest cannot be read, a column or cell is wrong, a path leaves the folder, or see
            `make_listing`.
        ConfigError: see `make_listing`.
    """
    table = _Table(path)
    kind = table.kind()
    everything, classes, task, given = _labelled(table, kind)
    split = table.column("split")
    rows = {"train": np.arange(table.rows)} if split is None else _parts(table, split)
    parts = {part: everything.take(chosen[given[chosen]]) for part, chosen in rows.items() if given[chosen].any()}
    if "train" not in parts:
        raise DataError(f"{path}: no row for training has a label. Fill in column {table.labels_in(kind)}.")
    others = shortened(", ".join(table.others))
    notices = [f"Columns that say nothing to us are ignored: {others}."] if others else []
    notices += _repeated(everything.items, path.parent)
    if not given.all():
        notices.append(
            f"{(~given).sum()} of {table.rows} rows have no label and are left out: {table.labels_in(kind)}."
        )
    if task == "segment":
        names = listed_names(path.parent / "classes.txt")
        return segmented(source, names, parts, root=path.parent, notices=notices, cache=cache, workers=workers)
    whole = set(parts) == {"train"}
    return make_listing(source, classes, parts, whole=whole, root=path.parent, notices=notices, task=task)


def has_masks(path: Path) -> bool:
    """Whether a manifest has a column of masks.

    Raises:
        DataError: it cannot be read.
    """
    return "mask" in _Table(path, whole=False).names


class _Table:
    """The columns of a manifest as texts, read when they are asked for.

    Attributes:
        rows: how many there are.
        soft: the columns `label:NAME` or `labels:NAME`.
        others: columns that mean nothing here.
    """

    def __init__(self, path: Path, whole: bool = True) -> None:
        """`whole` False: only the names of the columns are wanted."""
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file. Check the path.")
        try:
            names, self._read = _csv(path) if path.suffix.lower() == ".csv" else _parquet(path)
        except _UNREADABLE as error:
            raise DataError(f"{path}: not readable as {path.suffix[1:]} ({first_line(error)}). {_AS}") from error
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}: has two columns {twice!r}. Keep one.")
        self.names = names
        self.soft = [name for name in names if name.startswith(_SOFT)]
        self.others = [name for name in names if name not in (*COLUMNS, *self.soft)]
        if not whole:
            return
        self.paths = self.column("path")
        if self.paths is None:
            raise DataError(
                f"{path}: has no column 'path', only {shortened(', '.join(names))}. Name the column of image files so, "
                "and that of classes 'label', with commas between them."
            )
        self.rows = len(self.paths)
        if not self.rows:
            raise DataError(f"{path}: has no rows. Write one per image, below a line with the columns' names.")

    def kind(self) -> str:
        """The one column that says what images show: of KINDS, or 'label:' or 'labels:'."""
        found = [name for name in KINDS if name in self.names]
        found += [prefix for prefix in _SOFT if any(name.startswith(prefix) for name in self.soft)]
        if len(found) != 1:
            which = f"both {found[0]!r} and {found[1]!r}" if found else "nothing that says what the images show"
            raise DataError(
                f"{self.path}: has {which}. Give one of {', '.join(KINDS)}, or a column label:NAME for each class."
                + ("" if found else f" Its columns: {', '.join(self.names)}.")
            )
        return found[0]

    def labels_in(self, kind: str) -> str:
        """The columns that `kind` stands for, as words of a message."""
        return " and ".join(map(repr, self.soft if kind in _SOFT else [kind]))

    def column(self, name: str) -> Texts | None:
        """The cells of a column; None if there is no such column."""
        if name not in self.names:
            return None
        try:
            return [cell if cell is None else cell.strip() or None for cell in self._read(name)]
        except _UNREADABLE as error:
            raise DataError(f"{self.path}: column {name!r} cannot be read ({first_line(error)}). {_AS}") from error

    def wanted(self, name: str) -> list[str]:
        """The cells of a column that is there, none of which may be empty."""
        cells = self.column(name) or []
        for row, cell in enumerate(cells):
            if cell is None:
                raise self.wrong(row, name, "is empty", f"Every image needs a {name}: fill it in, or remove the row.")
        return [cell for cell in cells if cell is not None]

    def numbers(self, name: str, rule: str, is_valid: Callable[[float], bool]) -> Tags:
        """A column of numbers, float32 (N,); NaN where a cell is empty."""
        values = np.full(self.rows, np.nan, np.float32)
        for row, cell in enumerate(self.column(name) or ()):
            if cell is not None:
                try:
                    values[row] = float(cell)
                except ValueError:
                    raise self.wrong(row, name, f"= {short(cell)}", rule) from None
                if not is_valid(float(cell)):
                    raise self.wrong(row, name, f"= {short(cell)}", rule)
        return values

    def wrong(self, row: int, name: str, what: str, rule: str) -> DataError:
        """What is said of a cell; rows are counted from 1, below the names."""
        return DataError(f"{self.path}, row {row + 1}: {name} {what}. {rule}")


def _csv(path: Path) -> tuple[list[str], Callable[[str], list[str | None]]]:
    """Column names, and what reads the cells of one. Everything is text: a class may be called 007 or NA."""
    with pa.csv.open_csv(path) as reader:
        names = list(reader.schema.names)
    options = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
    )
    table = pa.csv.read_csv(path, convert_options=options)
    return [name.strip() for name in names], lambda name: table.column(
        [n.strip() for n in names].index(name)
    ).to_pylist()


def _parquet(path: Path) -> tuple[list[str], Callable[[str], list[str | None]]]:
    file = pa.parquet.ParquetFile(path)

    def cells(name: str) -> list[str | None]:
        column = file.read([name]).column(0)
        if pa.types.is_list(column.type):  # labels as a list of names
            return [None if cell is None else ";".join(map(str, cell)) for cell in column.to_pylist()]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return [None if cell is None or cell != cell else str(cell) for cell in column.to_pylist()]  # NaN is no class

    return list(file.schema_arrow.names), cells


def _labelled(table: _Table, kind: str) -> tuple[Labelled, list[str], Task, Mask]:
    """All rows as one part, the class names, the task, and bool (N,): whether a row says what its image shows."""
    base = Labelled(
        _files(table, "path"), np.zeros(table.rows, np.int64), groups=_groups(table), weights=_weights(table)
    )
    given = np.ones(table.rows, np.bool_)
    if kind == "mask":
        return base._replace(masks=_files(table, "mask")), [], "segment", given
    if kind == "label":
        cells = table.column("label") or []
        given = np.array([cell is not None for cell in cells])
        found, base.labels[given] = np.unique([cell for cell in cells if cell is not None], return_inverse=True)
        return base, found.tolist(), "classify", given
    if kind == "labels":
        names, tags = _several(table.column("labels") or ())
        return base._replace(tags=tags), names, "multilabel", given
    rule = "Write 0 (not shown) to 1 (shown), or leave it empty where it is unknown."
    columns = [table.numbers(name, rule, lambda value: 0 <= value <= 1) for name in table.soft]
    tags, names = np.stack(columns, axis=1), [name.partition(":")[2] for name in table.soft]
    told = np.asarray(~np.isnan(tags).all(axis=1))
    if kind == "label:" and (np.abs(tags[told].sum(axis=1) - 1) < 1e-3).all():  # NaN is not
        return base._replace(tags=tags), names, "classify", told
    return base._replace(tags=tags), names, "multilabel", given


def _several(cells: Texts) -> tuple[list[str], Tags]:
    lists = [[name.strip() for name in (cell or "").split(";") if name.strip()] for cell in cells]
    names = sorted({name for found in lists for name in found})
    return names, tags_of(lists, names)


def _files(table: _Table, name: str) -> list[Path]:
    """The files of a column, none of which may lie outside the manifest's folder, not even by a link."""
    root = table.path.parent
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    real_folders: dict[str, str] = {}  # many images share a folder: resolve each once
    files = []
    rule = "Paths are relative to the manifest's folder and stay in it."
    for row, text in enumerate(table.wanted(name)):
        if "\0" in text:
            raise table.wrong(row, name, f"= {short(text)} has a zero byte", rule)
        file = os.path.normpath(text)
        full = os.path.join(root, file)  # noqa: PTH118 (a million of these; pathlib takes several times as long)
        folder, base = os.path.split(full)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(real_folders[folder], base)  # noqa: PTH118
        if os.path.islink(full):  # noqa: PTH114
            real = os.path.realpath(full)
        if os.path.isabs(file) or not real.startswith(inside):  # noqa: PTH117
            raise table.wrong(row, name, f"= {short(text)} leaves {root}", rule)
        files.append(Path(full))
    return files


def _parts(table: _Table, split: Texts) -> dict[str, Labels]:
    """The rows of each part that has any, rising."""
    rule = f"Write {', '.join(PARTS)}."
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(split):
        part = PART_FOLDERS.get((cell or "").lower())
        if part is None:
            raise table.wrong(row, "split", f"= {short(cell)}", rule)
        rows.setdefault(part, []).append(row)
    if "train" not in rows:
        raise DataError(f"{table.path}: column 'split' names no row 'train'. {rule}")
    return {part: np.array(chosen, np.int64) for part, chosen in rows.items()}


def _groups(table: _Table) -> Labels | None:
    cells = table.column("group")
    if cells is None:
        return None
    named = {name: i for i, name in enumerate(sorted({cell for cell in cells if cell is not None}))}
    alone = iter(range(len(named), len(named) + len(cells)))
    return np.array([next(alone) if cell is None else named[cell] for cell in cells], np.int64)


def _weights(table: _Table) -> Tags | None:
    if "weight" not in table.names:
        return None
    rule = "A weight is a number above 0."
    weights = table.numbers("weight", rule, lambda value: 0 < value < math.inf)
    empty = np.flatnonzero(np.isnan(weights))
    if len(empty):
        raise table.wrong(int(empty[0]), "weight", "is empty", rule)
    return weights


def _repeated(items: Sequence[Item], root: Path) -> list[str]:
    """A notice where rows name an image that an earlier row has named."""
    seen: set[str] = set()
    again = [name for name in map(str, items) if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if not again:
        return []
    example = printable(again[0].removeprefix(f"{root}/"))
    return [f"{len(again)} rows name an image that an earlier row has named, for example {example}: keep one of each."]
