"""Import: runs of others become a study whose tables, status and warm start work; what cannot be used is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cvtune import cli, mapping, study
from cvtune.errors import ConfigError
from cvtune.history import load
from cvtune.imports import Imported, import_runs
from cvtune.noise import noise_floor
from cvtune.past import PastRun
from cvtune.space import Choice, IntUniform, LogUniform, Uniform
from cvtune.study import for_data
from cvtune.warm import warm_start

MAPS = ("val_accuracy=val_acc/100", "optim.lr=lr", "augment.strength=randaug_m/10", "optim.name=opt")


def theirs(count: int = 12) -> pd.DataFrame:
    """A row per run, as a team's sheet has them; the last three repeat one setting with other seeds."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "Name": f"run-{i}",
            "State": "finished",
            "lr": float(10 ** rng.uniform(-4, -1)),
            "randaug_m": int(rng.integers(0, 11)),
            "opt": ("sgd", "adamw")[i % 2],
            "epochs_done": 20,
            "val_acc": float(rng.uniform(60, 90)),
            "notes": "was slow",
        }
        for i in range(count)
    ]
    for row in rows[-3:]:
        row |= {name: rows[0][name] for name in ("lr", "randaug_m", "opt")}
    return pd.DataFrame(rows)


def imported(tmp: Path, table: pd.DataFrame, *maps: str, suffix: str = ".csv", **options: Any) -> Imported:
    path = tmp / f"runs{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    return import_runs(str(path), maps or MAPS, tmp / "studies", **options)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_sheet_with_a_row_per_run(tmp_path: Path, suffix: str) -> None:
    table = theirs()
    made = imported(tmp_path, table, *MAPS, "epoch=epochs_done", suffix=suffix)
    domains = made.study.space.domains
    assert domains["optim.lr"] == LogUniform(table["lr"].min(), table["lr"].max())
    assert isinstance(domains["augment.strength"], Uniform) and domains["optim.name"] == Choice("adamw", "sgd")
    assert (made.study.objective, made.study.recipe.max_epochs, made.study.noise_seeds) == ("val_accuracy", 20, 4)
    rows = pq.read_table(made.folder / "tables" / "epochs.parquet").to_pylist()
    assert sorted(row["val_accuracy"] for row in rows) == pytest.approx(sorted(table["val_acc"] / 100))
    assert {row["step"] for row in rows} == {row["epoch"] for row in rows} == {20}
    trials = pq.read_table(made.folder / "tables" / "trials.parquet").to_pylist()
    assert [t["role"] for t in trials] == ["noise"] * 4 + ["search"] * 8
    assert {t["reason"] for t in trials} == {"completed"} and trials[0]["message"] == "run-0"
    floor = noise_floor(made.study, load(made.folder))
    assert floor is not None and floor.sd == pytest.approx(table["val_acc"].iloc[[0, 9, 10, 11]].std() / 100)
    assert made.lines[0] == f"12 of 12 runs of {tmp_path / f'runs{suffix}'} are the trials of study 'runs'."
    assert any(line.startswith("Missing: regularize.strength") for line in made.lines)
    assert "Not mapped: Name, State, notes." in made.lines


def test_a_table_with_a_row_per_report(tmp_path: Path) -> None:
    """Curves, epochs counted from 0, a run that was killed, one that crashed and one that still runs."""
    ends = {"a": ("finished", 3), "b": ("killed", 2), "c": ("crashed", 1), "d": ("running", 2), "e": ("finished", 3)}
    rows = [
        {
            "job": job,
            "state": state,
            "lr": 0.01 * (n + 1),
            "randaug_m": n,
            "opt": "sgd",
            "ep": e,
            "val_acc": 50 + 9 * e + n,
        }
        for n, (job, (state, count)) in enumerate(ends.items())
        for e in range(count)
    ]
    made = imported(tmp_path, pd.DataFrame(rows).sample(frac=1, random_state=0), *MAPS, "trial=job", "epoch=ep")
    history = load(made.folder)
    by_name = {record.message: record for record in history.trials.values()}
    assert [e["step"] for e in by_name["a"].epochs] == [1, 2, 3]
    assert [e["val_accuracy"] for e in by_name["a"].epochs] == pytest.approx([0.5, 0.59, 0.68])
    assert {name: record.reason for name, record in by_name.items()} == {
        "a": "completed", "b": "cancelled", "c": "code_error", "": None, "e": "completed"
    }  # fmt: skip
    assert made.study.recipe.optim.name == "sgd" and "optim.name" not in made.study.space.domains
    assert history.complete and history.best(made.study)[0].message == "e"  # type: ignore[index]


def test_status_export_and_warm_start_take_it(tmp_path: Path) -> None:
    made = imported(tmp_path, theirs())
    run = CliRunner().invoke(cli.app, ["status", "runs", "--storage", str(tmp_path / "studies")])
    assert run.exit_code == 0, run.output
    assert "complete" in CliRunner().invoke(cli.app, ["list", "--storage", str(tmp_path / "studies")]).output
    new = for_data("digits").set({"objective": "val_accuracy"}).model_copy(update={"space": made.study.space})
    warmed, notices = warm_start(new, made.folder)
    assert len(warmed.prior) == 12 and len(warmed.points) == 3
    assert notices[0].startswith("12 of 12 trials of 'runs' are learned from")


def test_the_command_prints_what_became_of_the_runs(tmp_path: Path) -> None:
    theirs().to_csv(tmp_path / "ours.csv", index=False)
    options = [part for text in MAPS for part in ("--map", text)]
    storage = ["--storage", str(tmp_path / "studies")]
    done = CliRunner().invoke(cli.app, ["import", str(tmp_path / "ours.csv"), *options, *storage])
    assert done.exit_code == 0, done.output
    assert "4 runs with equal values measure the noise." in done.output
    again = CliRunner().invoke(cli.app, ["import", str(tmp_path / "ours.csv"), *options, *storage])
    assert isinstance(again.exception, ConfigError) and "study 'ours' exists" in str(again.exception)


def test_our_own_export_comes_back(tmp_path: Path) -> None:
    made = imported(tmp_path, theirs())
    before = pq.read_table(made.folder / "tables" / "epochs.parquet").to_pandas()
    again = import_runs(str(made.folder / "tables" / "epochs.parquet"), (), tmp_path / "studies", "again")
    after = pq.read_table(again.folder / "tables" / "epochs.parquet").to_pandas()
    assert again.study.space == made.study.space
    for name in ("val_accuracy", "optim.lr", "augment.strength", "optim.name"):
        assert sorted(after[name]) == sorted(before[name])


def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path: Path) -> None:
    table = theirs(12)
    table.loc[1, "lr"] = -1.0
    table.loc[2, "val_acc"] = np.nan
    table.loc[3, "opt"] = "lion"
    table.loc[4, "lr"] = np.nan
    made = imported(tmp_path, table)
    assert made.lines[0].startswith("8 of 12 runs")
    (left,) = [line for line in made.lines if line.startswith("Left out: 1 with ")]
    assert "optim.lr" in left and "no val_accuracy (val_acc)" in left and "optim.name = 'lion'" in left
    assert "Left out: 1 without a value of a searched name." in made.lines
    assert study.read(made.folder / "study.json") == made.study


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (("val_acuracy=val_acc",), {}, r"'val_acuracy' is neither .* Did you mean 'val_accuracy'"),
        (("val_accuracy",), {}, r"write ours=theirs"),
        (("val_accuracy=val_ac",), {}, r"no run has a value of 'val_ac'. Did you mean 'val_acc'"),
        (("optim.lr=lr",), {}, r"nothing says how good a run is. Map a metric"),
        (("val_accuracy=val_acc", "optim.lr=lr"), {}, r"above 1.* of percent write --map val_accuracy=val_acc/100"),
        (MAPS, {"objective": "val_loss"}, r"--objective 'val_loss': nothing is mapped to it. Valid: val_accuracy"),
        (("val_accuracy=val_acc/100",), {}, r"all runs have the same values"),
        ((*MAPS, "trial=jobs"), {}, r"has no such column, only Name, State"),
        (
            ("val_accuracy=notes", "optim.lr=lr"),
            {},
            r"none of 12 runs can be used: 12 with val_accuracy = 'was slow' is",
        ),
    ],
)
def test_errors_say_what_to_map(tmp_path: Path, maps: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, theirs(), *maps, **options)
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("nope.csv", None, "no such file"),
        ("torn.parquet", b"PAR1", "not readable as parquet"),
        ("empty.csv", b"a,b\n", "has no rows"),
        ("just-a-word", None, "or a project of W&B as ENTITY/PROJECT"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, source: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / source).write_bytes(content)
    where = str(tmp_path / source) if "." in source else source
    with pytest.raises(ConfigError, match=message):
        import_runs(where, (), tmp_path / "studies")


def test_whole_numbers_are_choices_or_ranges() -> None:
    """Batch sizes are a handful of values, accumulated batches may be many."""
    few = [PastRun(str(n), {"data.batch_size": n, "val_accuracy": 0.5}) for n in (16, 32, 64)]
    many = [PastRun(str(n), {"data.batch_size": n, "val_accuracy": 0.5}) for n in range(2, 30)]
    found = []
    for runs in (few, many):
        mapped, _ = mapping.complete({}, runs)
        found.append([mapping.settings(run, mapped)["data.batch_size"] for run in runs])
    from cvtune.imports import _domain

    assert _domain("data.batch_size", found[0]) == Choice(16, 32, 64)
    assert _domain("data.batch_size", found[1]) == IntUniform(2, 29)
