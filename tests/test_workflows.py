"""The workflows in `workflows/`: each builds and tells how to run it; two are run for real, in small."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cvtune import journal, study
from cvtune.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def has_study(path: Path) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name == "study" for n in ast.parse(path.read_text()).body)


WORKFLOWS = [path for path in sorted((ROOT / "workflows").glob("*.py")) if has_study(path)]
FOLLOWING = {"replay", "transfer"}  # need the results of another one: pbt, pretrain
ALONE = [path for path in WORKFLOWS if path.stem not in FOLLOWING]
SMALL = ("model.width=4", "data.train_fraction=0.4")  # what is tested does not depend on how well it learns
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_builds_and_is_named_like_its_file(path: Path) -> None:
    built = study.load(str(path))
    assert built.name == path.stem
    assert built.space.domains, "a workflow searches something"


@each_workflow
def test_docstring_tells_what_it_is_and_how_to_run_it(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = text.splitlines()[0]
    assert re.fullmatch(r"[A-Z].*\w[.?]", first), f"not one sentence: {first!r}"
    assert f"    uv run cvtune run workflows/{path.name}\n" in text
    assert "Time: " in text
    assert "Expect: " in text


def run(
    workflow: str, folder: Path, *changes: str, population: Path | None = None, settings: dict[str, str] | None = None
) -> Path:
    """Run a workflow through the command line as a user would; returns the study's folder."""
    options = [word for setting in changes for word in ("--set", setting)]
    command = [sys.executable, "-m", "cvtune.cli", "run", f"workflows/{workflow}.py", *options]
    places = ["--storage", str(folder / "studies"), "--cache", str(folder / "cache")]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CVTUNE_"))}
    alone |= settings or {}
    if population is not None:
        alone["CVTUNE_REPLAY"] = str(population)
    done = subprocess.run([*command, *places], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    study_folder = folder / "studies" / ("pbt-replay" if population else workflow)
    assert re.search(r"^tables +\S", done.stdout, re.MULTILINE), done.stdout[-3000:]
    return study_folder


def check_tables(study_folder: Path, trials: int) -> None:
    table = pq.read_table(study_folder / "tables" / "trials.parquet")
    epochs = pq.read_table(study_folder / "tables" / "epochs.parquet")
    searched = table.filter(pc.equal(table["role"], "search"))
    assert searched.num_rows == trials
    assert set(table["reason"].to_pylist()) <= {"completed", "stopped_scheduler"}, table["message"].to_pylist()
    assert "completed" in table["reason"].to_pylist()
    assert epochs.num_rows == pc.sum(table["epochs"]).as_py() >= trials
    assert epochs["val_accuracy"].null_count == 0
    assert len(set(searched["optim.lr"].to_pylist())) == trials, "each trial trains with a point of its own"


@pytest.mark.slow
def test_quickstart_runs_and_readmes_query_reads_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("budget.trials=4", "max_epochs=2", "noise_seeds=2", "confirm.seeds=2", *SMALL)
    study_folder = run("quickstart", tmp_path, *small)
    check_tables(study_folder, trials=4)
    compared = json.loads((study_folder / "best" / "comparison.json").read_text())
    assert {recipe["label"] for recipe in compared["recipes"]} >= {"default", "trivial"}
    predictions = pq.read_table(study_folder / "tables" / "predictions.parquet")
    assert predictions.num_rows == compared["images"] * sum(len(recipe["seeds"]) for recipe in compared["recipes"])
    assert (study_folder / "best" / "recipe.json").is_file()
    query = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert query is not None
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-c", query[1]], capture_output=True, text=True, check=True)
    assert "val_accuracy" in done.stdout
    assert "regularize.strength" in done.stdout


@pytest.mark.slow
def test_own_code_runs(tmp_path: Path) -> None:
    check_tables(run("own_code", tmp_path, "budget.trials=3", "max_epochs=1", "confirm.top=0"), trials=3)


@pytest.mark.slow
def test_lightning_runs(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning", reason="Lightning is an extra; the group dev has it")
    small = ("budget.trials=2", "max_epochs=2", "noise_seeds=0", "confirm.top=0")
    check_tables(run("lightning", tmp_path, *small), trials=2)


@pytest.mark.long
def test_imbalanced_images_settle_what_the_whole_study_compares_by(tmp_path: Path) -> None:
    small = ("budget.trials=2", "max_epochs=1", "noise_seeds=0", "confirm.top=0", "confirm.seeds=2", *SMALL)
    study_folder = run("imbalance", tmp_path, *small)
    assert study.read(study_folder / "study.json").objective == "val_balanced_accuracy"
    compared = json.loads((study_folder / "best" / "comparison.json").read_text())
    assert compared["metric"] == "balanced_accuracy"
    assert {r["label"] for r in compared["recipes"]} == {"oversample", "class_weight", "focal", "default", "trivial"}
    row = pq.read_table(study_folder / "tables" / "studies.parquet").to_pylist()[0]
    assert (row["objective"], row["mode"]) == ("val_balanced_accuracy", "max")
    study_folder = run("imbalance", tmp_path, *small, "budget.trials=3")  # taken up again, still left open
    assert pq.read_table(study_folder / "tables" / "studies.parquet")["objective"].to_pylist() == [
        "val_balanced_accuracy"
    ]


@pytest.mark.slow
def test_segmentation_runs_without_any_download(tmp_path: Path) -> None:
    small = ("budget.trials=2", "max_epochs=1", "scheduler.name=fifo", "data.image_size=48", "data.train_fraction=0.3")
    study_folder = run("segmentation", tmp_path, *small, "confirm.seeds=2")
    check_tables(study_folder, trials=2)
    epochs = pq.read_table(study_folder / "tables" / "epochs.parquet").to_pylist()
    assert all(len(row["val_iou"]) == 3 for row in epochs), "background, disc and bar"
    compared = json.loads((study_folder / "best" / "comparison.json").read_text())
    assert compared["metric"] == "mean_iou"


@pytest.mark.long
def test_both_optimizers_are_confirmed_at_their_best(tmp_path: Path) -> None:
    small = ("budget.trials=4", "max_epochs=1", "data.train_fraction=0.3", "confirm.seeds=2")
    study_folder = run("segmentation_optimizers", tmp_path, *small)
    check_tables(study_folder, trials=4)
    trials = pq.read_table(study_folder / "tables" / "trials.parquet").to_pylist()
    optimizers = {trial["trial"]: trial["optim.name"] for trial in trials if trial["role"] == "search"}
    compared = json.loads((study_folder / "best" / "comparison.json").read_text())
    labels = {recipe["label"] for recipe in compared["recipes"]} - {"default", "trivial"}
    assert sorted(optimizers[label] for label in labels) == ["adam", "sgd"]


def test_transfer_says_what_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVTUNE_PRETRAINED", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"no study .*nowhere.*workflows/pretrain\.py.*CVTUNE_PRETRAINED"):
        study.load(str(ROOT / "workflows" / "transfer.py"))


@pytest.mark.long
def test_transfer_starts_from_the_best_trial_of_pretrain(tmp_path: Path) -> None:
    older = run("pretrain", tmp_path, "budget.trials=2", "max_epochs=3")
    tuned = run("transfer", tmp_path, "budget.trials=2", "confirm.seeds=2", settings={"CVTUNE_PRETRAINED": str(older)})
    weights = json.loads((tuned / "study.json").read_text())["provenance"]["weights"]
    assert [Path(place).parents[2].parent for place in weights] == [older / "trials"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in weights.values())
    compared = json.loads((tuned / "best" / "comparison.json").read_text())
    assert "scratch" in {recipe["label"] for recipe in compared["recipes"]}


@pytest.mark.long
def test_the_schedule_of_a_population_is_replayed_against_the_best_constant_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("max_epochs=4", "confirm.seeds=2", *SMALL)
    with pytest.raises(ConfigError, match="pbt"):
        monkeypatch.setenv("CVTUNE_REPLAY", str(tmp_path / "nowhere"))
        study.load(str(ROOT / "workflows" / "replay.py"))
    older = run("pbt", tmp_path, *small, "budget.trials=4", "noise_seeds=0", "confirm.top=0", "scheduler.quantile=0.5")
    processes = {event["pid"] for event in journal.read(older) if event["kind"] == "segment"}
    assert len(processes) <= min(4, os.cpu_count() or 1), "processes that wait for the others' reports are kept"
    replayed = run("replay", tmp_path, *small, population=older)
    trials = pq.read_table(replayed / "tables" / "trials.parquet").to_pylist()
    trained = pq.read_table(older / "tables" / "epochs.parquet").num_rows
    searched = sum(t["epochs"] for t in trials if t["role"] == "search")
    assert trained <= searched <= trained + 4  # each open trial may report once more
    assert sum(t["label"] == "schedule" for t in trials) == 2
    schedule = json.loads((older / "schedule.json").read_text())
    rows = pq.read_table(replayed / "tables" / "epochs.parquet").to_pylist()
    again = next(t["trial"] for t in trials if t["label"] == "schedule")
    in_force = [row for row in rows if row["trial"] == again]
    for row, planned in zip(sorted(in_force, key=lambda r: r["epoch"]), schedule["epochs"], strict=True):
        assert all(row[name] == pytest.approx(value) for name, value in planned["values"].items())
    compared = json.loads((replayed / "best" / "comparison.json").read_text())
    assert "schedule" in {recipe["label"] for recipe in compared["recipes"]}
