"""Tables: read with four libraries, typed, documented, exactly the epochs that the journal holds; export."""

import json
import math
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from cvtune.epoch import METRICS
from cvtune.journal import Journal
from cvtune.recipe import FIELDS
from cvtune.results import write_tables
from cvtune.study import for_data

STUDY = for_data("digits").set({"objective": "val_accuracy", "max_epochs": 3})
NEWER = ("val_worst_recall", "val_mean_iou", "val_dice", "val_map", "val_recall", "val_iou", "weight_norm")
TABLES = ("studies", "trials", "epochs", "decisions", "predictions")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of two trials: one with a change in mid-training that diverged at its second report, one stopped."""
    study = tmp_path / "digits"
    (study / "journal").mkdir(parents=True)
    (study / "study.json").write_text(STUDY.to_json({"augment_mapping": 1, "regularize_mapping": 1}))
    journal = Journal(study / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    recipes = [{"changes": [[1, {"augment.strength": 0.9}]], "max_epochs": 3}, {"regularize": {"strength": 1.0}}]
    for index, recipe in enumerate(recipes):
        name = f"{index:05d}"
        proposed = {"role": "search", "label": "", "values": {"optim.lr": 0.1}, "recipe": recipe, "waiting": False}
        journal.append("trial", {"trial": name, "index": index, **proposed})
        journal.append("segment", {"trial": name, "segment": 0, "attempt": 1, "step": 0, "node": "n", "pid": 1})
    for trial, step, score in (("00000", 1, 0.5), ("00001", 1, 0.25), ("00000", 2, float("nan"))):
        numbers = {**dict.fromkeys(METRICS, 0.5), "step": step, "epoch": step, "val_accuracy": score, "seconds": 2.0}
        numbers |= {"val_recall": [0.25, None], "val_iou": None, "val_map": None, "fold_scores": None}
        if trial == "00001":  # as an earlier version wrote it
            numbers = {name: value for name, value in numbers.items() if name not in NEWER}
        decided = {"answer": "go", "acts": [], "reason": None, "message": ""}
        if trial == "00001":
            decided |= {"answer": "stop", "reason": "stopped_scheduler", "message": "rung 1", "call": 0}
            decided |= {"action": "stop", "why": "rung 1", "arrival": 0}
        journal.append("epoch", {"trial": trial, "attempt": 1, "segment": 0, **numbers, **decided})
    journal.append("end", {"trial": "00000", "reason": "diverged", "message": "", "acts": []})
    journal.append("close", {"why": "complete", "ended": "budget.trials = 2"})
    journal.close()
    write_tables(study)
    return study


def test_four_libraries_read_the_same_rows(folder: Path) -> None:
    for name, rows in (("studies", 1), ("trials", 2), ("epochs", 3), ("decisions", 1)):
        path = str(folder / "tables" / f"{name}.parquet")
        arrow = pq.read_table(path)
        assert arrow.num_rows == rows
        assert duckdb.connect().execute(f"select count(*) from '{path}'").fetchall() == [(rows,)]
        assert pl.read_parquet(path).shape == (rows, arrow.num_columns) == pd.read_parquet(path).shape


def test_every_column_carries_its_description_and_known_units(folder: Path) -> None:
    for name in TABLES:
        schema = pq.read_schema(folder / "tables" / f"{name}.parquet")
        assert all(field.metadata[b"description"].endswith(b".") for field in schema), name
        assert schema.metadata[b"cvtune.format"] == b"1"
    epochs = pq.read_schema(folder / "tables" / "epochs.parquet")
    assert epochs.field("seconds").metadata[b"unit"] == b"s"
    assert epochs.field("data.image_size").metadata[b"unit"] == b"px"
    assert {str(epochs.field(n).type) for n in ("step", "optim.lr", "model.name")} == {"int64", "double", "string"}
    assert set(FIELDS) | set(METRICS) <= set(epochs.names)


def test_rows_hold_the_effective_recipe_of_their_epoch(folder: Path) -> None:
    table = pl.read_parquet(folder / "tables" / "epochs.parquet").sort("trial", "step")
    assert table["augment.strength"].to_list() == [0.3, 0.9, 0.3]
    assert table["regularize.dropout"].to_list() == pytest.approx([0.15, 0.15, 0.5])  # the bundle, expanded
    assert math.isnan(table["val_accuracy"].to_list()[1])


def test_what_a_task_or_an_earlier_version_lacks_is_null_and_lists_are_lists(folder: Path) -> None:
    table = pl.read_parquet(folder / "tables" / "epochs.parquet").sort("trial", "step")
    assert table["val_recall"].to_list() == [[0.25, None], [0.25, None], None]
    assert table["val_iou"].to_list() == [None] * 3 == table["val_map"].to_list()
    assert table["weight_norm"].to_list() == [0.5, 0.5, None] and table["val_loss"].to_list() == [0.5] * 3


def test_trials_have_one_terminal_reason_and_their_sums(folder: Path) -> None:
    row = pl.read_parquet(folder / "tables" / "trials.parquet").row(by_predicate=pl.col("trial") == "00000", named=True)
    assert (row["reason"], row["epochs"], row["best"], row["best_step"], row["seconds"]) == ("diverged", 2, 0.5, 1, 4.0)
    assert json.loads(row["searched"]) == {"optim.lr": 0.1} and row["augment_mapping"] == 1


def test_a_decision_says_why(folder: Path) -> None:
    row = pl.read_parquet(folder / "tables" / "decisions.parquet").row(0, named=True)
    assert (row["trial"], row["step"], row["action"], row["reason"]) == ("00001", 1, "stop", "rung 1")


def test_a_table_that_cannot_be_written_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in (folder / "tables").iterdir()}

    def full(writer: pq.ParquetWriter, batch: object) -> None:
        assert aside(folder), "it is written beside the old one"
        raise OSError(28, "No space left on device")

    def aside(folder: Path) -> set[Path]:
        return set((folder / "tables").iterdir()) - before.keys()

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    with pytest.raises(OSError, match="No space"):
        write_tables(folder)
    assert {p: p.read_bytes() for p in (folder / "tables").iterdir()} == before


def test_what_a_loop_of_the_users_own_leaves_out_is_null(tmp_path: Path) -> None:
    study = tmp_path / "digits"
    (study / "journal").mkdir(parents=True)
    (study / "study.json").write_text(STUDY.to_json({}))
    journal = Journal(study / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    proposed = {"index": 0, "role": "search", "label": "", "values": {}, "waiting": False}
    journal.append("trial", {"trial": "0", **proposed, "recipe": {"train": {"loop": "python:my_loop:train"}}})
    journal.append("segment", {"trial": "0", "segment": 0, "attempt": 1, "step": 0, "node": "n", "pid": 1})
    numbers = {**dict.fromkeys(METRICS), "step": 1, "epoch": 1, "seconds": 2.0, "train_loss": math.nan, "val_loss": 1.0}
    decided = {"answer": "go", "acts": [], "reason": None, "message": ""}
    journal.append("epoch", {"trial": "0", "attempt": 1, "segment": 0, **numbers, **decided})
    journal.append("trial", {**proposed, "trial": "1", "index": 1, "recipe": {}})  # a candidate without such a loop
    journal.append("segment", {"trial": "1", "segment": 0, "attempt": 1, "step": 0, "node": "n", "pid": 1})
    journal.append("epoch", {"trial": "1", "attempt": 1, "segment": 0, **numbers, **decided})
    journal.close()
    write_tables(study)
    row, other = pq.read_table(study / "tables" / "epochs.parquet").to_pylist()
    assert math.isnan(other["train_loss"]) and math.isnan(other["val_accuracy"])
    assert math.isnan(row["train_loss"]) and row["val_loss"] == 1
    assert row["parameters"] is None and row["micro_batch"] is None and row["val_accuracy"] is None


def test_a_study_that_failed_before_any_report_has_tables_without_rows(tmp_path: Path) -> None:
    study = tmp_path / "digits"
    (study / "journal").mkdir(parents=True)
    (study / "study.json").write_text(STUDY.to_json({}))
    journal = Journal(study / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    proposed = {"index": 0, "role": "search", "label": "", "values": {}, "waiting": False, "recipe": {}}
    journal.append("trial", {"trial": "0", **proposed})
    journal.close()
    write_tables(study)
    assert pq.read_table(study / "tables" / "epochs.parquet").num_rows == 0
    assert pq.read_table(study / "tables" / "trials.parquet").num_rows == 1
