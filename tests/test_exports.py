"""Exports: what is written is what is read back, by the libraries that people will read it with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvtune import Choice, LogUniform, PerChoice, Uniform, space
from cvtune.epoch import METRICS
from cvtune.errors import ConfigError
from cvtune.exports import export
from cvtune.journal import Journal
from cvtune.recipe import FIELDS
from cvtune.study import for_data

TABLES = ("studies", "trials", "epochs", "decisions", "predictions")
SPACE = space(
    {
        "augment.strength": Uniform(0, 1),
        "optim.name": Choice("sgd", "adamw"),
        "optim.lr": PerChoice("optim.name", {"sgd": LogUniform(1e-2, 1), "adamw": LogUniform(1e-4, 1e-2)}),
    }
)
STUDY = for_data("digits").set({"objective": "val_accuracy", "max_epochs": 3}).model_copy(update={"space": SPACE})
SGD: dict[str, Any] = {"augment.strength": 0.1, "optim.name": "sgd", "optim.lr": 0.5}
ADAMW: dict[str, Any] = {"augment.strength": 0.9, "optim.name": "adamw", "optim.lr": 1 / 3000}
TRIALS: list[tuple[str, dict[str, Any], list[float], str | None]] = [  # role, values, scores, reason
    ("noise", {}, [0.5], "completed"),
    ("search", SGD, [0.6, 0.9, 0.8], "completed"),
    ("search", ADAMW, [0.25], "stopped_scheduler"),
    ("search", ADAMW, [0.3, math.nan], "diverged"),
    ("control", SGD, [0.4], None),
    ("confirm", SGD, [0.85], "completed"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with a trial of every kind and end."""
    study = tmp_path / "digits"
    (study / "journal").mkdir(parents=True)
    (study / "study.json").write_text(STUDY.to_json({}))
    journal = Journal(study / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    for index, (role, values, scores, reason) in enumerate(TRIALS):
        recipe = STUDY.recipe.replace(values).model_dump(mode="json", exclude_defaults=True)
        about = {"index": index, "role": role, "label": "", "values": values, "recipe": recipe, "waiting": False}
        journal.append("trial", {"trial": str(index), **about})
        for step, score in enumerate(scores, 1):
            numbers = {
                **dict.fromkeys(METRICS, 0.5),
                "fold_scores": None,
                "step": step,
                "epoch": step,
                "val_accuracy": score,
                "seconds": 2.0,
            }
            numbers |= {"val_recall": [0.25, None], "val_iou": None, "train_loss": 1 / 3}
            end = {"reason": reason if step == len(scores) else None, "message": 'said, and "quoted"', "acts": []}
            journal.append("epoch", {"trial": str(index), "attempt": 1, "segment": 0, "answer": "go", **numbers, **end})
    journal.append("close", {"why": "complete", "ended": "budget.trials = 3"})
    journal.close()
    return study


@pytest.mark.parametrize("form", ["{}", "file://{}", "memory://{}"])
def test_tables_go_to_folders_and_urls(folder: Path, tmp_path: Path, form: str) -> None:
    files = export(folder, form.format(tmp_path / "out" / "deeper"))
    assert [f.rsplit("/", 1)[1] for f in files] == [*sorted(f"{t}.parquet" for t in TABLES), "study.json"]
    if not form.startswith("memory"):
        assert pq.read_table(tmp_path / "out" / "deeper" / "epochs.parquet").num_rows == 9


@pytest.mark.parametrize("target", ["nosuchscheme://x/y", "/proc/nowhere/x"])
def test_where_it_cannot_be_written_is_said(folder: Path, target: str) -> None:
    with pytest.raises(ConfigError, match="--to"):
        export(folder, target)


def test_an_unknown_format_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--format 'optuna2' is not known\. Did you mean 'optuna'"):
        export(folder, str(tmp_path / "out"), "optuna2")
    assert not (tmp_path / "out").exists()


def test_csv_holds_every_value_of_the_tables(folder: Path, tmp_path: Path) -> None:
    files = export(folder, str(tmp_path), "csv")
    assert {Path(f).name for f in files} == {*(f"{t}.csv" for t in TABLES), "columns.csv", "study.json"}
    for name in TABLES:
        stored = pq.read_table(folder / "tables" / f"{name}.parquet")
        read = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, dtype=str)
        assert list(read.columns) == stored.column_names and len(read) == stored.num_rows
        for field in stored.schema:
            for text, value in zip(read[field.name], stored.column(field.name).to_pylist(), strict=True):
                assert_same(text, value, field)
    columns = pd.read_csv(tmp_path / "columns.csv").set_index(["table", "column"])
    assert columns.loc[("epochs", "seconds"), "unit"] == "s"
    assert {column for table, column in columns.index if table == "epochs"} >= set(FIELDS) | set(METRICS)


def assert_same(text: str, value: Any, field: pa.Field) -> None:
    if value is None:
        assert text == "", field
    elif isinstance(value, list):
        assert json.loads(text) == value
    elif pa.types.is_timestamp(field.type):
        assert pd.Timestamp(text) == pd.Timestamp(value)
    elif pa.types.is_boolean(field.type):
        assert text == str(value).lower()
    elif isinstance(value, float):
        assert float(text) == value or (math.isnan(value) and text == "nan"), field
    else:
        assert text == str(value), field


def test_optuna_reads_the_search_back(folder: Path, tmp_path: Path) -> None:
    export(folder, str(tmp_path), "optuna")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.sqlite3'}")
    assert (study.study_name, study.direction.name, study.metric_names) == ("digits", "MAXIMIZE", ["val_accuracy"])
    trials = study.trials
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert [t.value for t in trials] == [0.5, 0.9, 0.25, None, None]
    assert study.best_trial.number == 1 and study.best_trial.user_attrs["best_step"] == 2
    assert trials[1].intermediate_values == {1: 0.6, 2: 0.9, 3: 0.8}
    assert trials[3].intermediate_values == {1: 0.3}  # a NaN is no score
    assert trials[1].params == {"augment.strength": 0.1, "optim.name": "sgd", "optim.lr (optim.name = 'sgd')": 0.5}
    rates = trials[2].distributions["optim.lr (optim.name = 'adamw')"]
    assert rates == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert [t.user_attrs["role"] for t in trials] == ["noise", "search", "search", "search", "control"]
    assert trials[3].user_attrs["reason"] == "diverged" and trials[1].user_attrs["train_loss"] == 1 / 3
    assert trials[1].datetime_complete is not None and trials[4].datetime_complete is None
    assert study.user_attrs["complete"] is True and study.user_attrs["max_epochs"] == 3
    assert set(optuna.importance.get_param_importances(study, params=["augment.strength"])) == {"augment.strength"}


def test_scores_where_less_is_better(folder: Path, tmp_path: Path) -> None:
    (folder / "study.json").write_text(STUDY.model_copy(update={"objective": "val_loss"}).to_json({}))
    export(folder, str(tmp_path), "optuna")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.sqlite3'}")
    assert study.direction.name == "MINIMIZE" and study.trials[1].value == 0.5
