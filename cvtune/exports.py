"""A study in formats that others read: which there are, and how they get to a folder or a URL."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cvtune.errors import ConfigError, did_you_mean
from cvtune.optuna_storage import FILE as OPTUNA
from cvtune.optuna_storage import write_storage
from cvtune.printable import csv_cell
from cvtune.results import write_tables

COLUMNS = "columns.csv"  # what the columns of the other files hold, as CSV itself cannot say it


def export(folder: Path, target: str, form: str = "parquet") -> list[str]:
    """Write a study in one of FORMATS, beside its `study.json`, to a folder or a URL that pyarrow or fsspec reaches.

    Raises:
        ConfigError: the format or the target's scheme is not known, or the target cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form!r} is not known. {did_you_mean(form, FORMATS)}")
    write_tables(folder)
    with tempfile.TemporaryDirectory(prefix="cvtune-export-") as made:
        files = [*FORMATS[form](folder, Path(made)), folder / "study.json"]
        return _deliver(files, target)


def parquet_files(folder: Path, made: Path) -> list[Path]:
    """The tables as they stand in the study."""
    return sorted((folder / "tables").glob("*.parquet"))


def csv_files(folder: Path, made: Path) -> list[Path]:
    """A CSV file per table: lists as JSON, times as ISO 8601 in UTC, null as an empty cell and NaN as nan; no text that
    a spreadsheet would take for a formula (see `csv_cell`)."""
    described = []
    for source in parquet_files(folder, made):
        table = pq.read_table(source)
        described += [
            {"table": source.stem, "column": field.name, "type": str(field.type), **_metadata(field)}
            for field in table.schema
        ]
        pa.csv.write_csv(_texts(_flat(table)), made / f"{source.stem}.csv")
    pa.csv.write_csv(pa.Table.from_pylist(described), made / COLUMNS)
    return sorted(made.glob("*.csv"))


def optuna_file(folder: Path, made: Path) -> list[Path]:
    """The search as a storage of Optuna, see `write_storage`."""
    write_storage(folder, made / OPTUNA)
    return [made / OPTUNA]


FORMATS: dict[str, Callable[[Path, Path], list[Path]]] = {  # (study, an empty folder) -> files to be delivered
    "parquet": parquet_files,
    "csv": csv_files,
    "optuna": optuna_file,
}


def _metadata(field: pa.Field) -> dict[str, str]:
    known = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return {"unit": known.get("unit", ""), "description": known.get("description", "")}


def _flat(table: pa.Table) -> pa.Table:
    """The table with its columns of lists as JSON texts, which is all that CSV can hold."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            cells = [None if cell is None else json.dumps(cell) for cell in table.column(i).to_pylist()]
            table = table.set_column(i, field.name, pa.array(cells, pa.string()))
    return table


def _texts(table: pa.Table) -> pa.Table:
    """The table with every text as `csv_cell` writes it."""
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            cells = [None if cell is None else csv_cell(cell) for cell in table.column(i).to_pylist()]
            table = table.set_column(i, field.name, pa.array(cells, pa.string()))
    return table


def _deliver(files: list[Path], target: str) -> list[str]:
    try:
        system, root = _filesystem(target)
        system.create_dir(root, recursive=True)
        for file in files:
            with system.open_output_stream(f"{root}/{file.name}") as out:
                out.write(file.read_bytes())
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise ConfigError(
            f"--to {target!r} cannot be written ({error}). Give a folder or a URL such as s3://bucket/path, "
            "file:///path or gs://bucket/path; install the fsspec driver of other schemes (for example adlfs for az://)."
        ) from None
    return [f"{target.rstrip('/')}/{file.name}" for file in files]


def _filesystem(target: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in target:
        return pafs.LocalFileSystem(), str(Path(target).resolve())
    try:
        system, root = pafs.FileSystem.from_uri(target)
        return system, root.rstrip("/")
    except pa.ArrowInvalid:  # a scheme that pyarrow does not know
        import fsspec

        other, root = fsspec.core.url_to_fs(target)
        return pafs.PyFileSystem(pafs.FSSpecHandler(other)), root.rstrip("/")
