"""Import of a W&B project through the public API of W&B's own client, from the stand-in server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cvtune.history import load
from tests.tracking.delivery import CANARY, environment
from tests.tracking.wandb_answers import HISTORY, SUMMARY, Run
from tests.tracking.wandb_server import WandbServer, wandb_server

pytestmark = pytest.mark.slow
RUNS = 8
MAPS = ("optim.lr=optimizer.lr", "augment.strength=aug", "val_accuracy=valid.acc", "epoch=epoch")


def a_project(server: WandbServer) -> None:
    """Runs of a team: nested settings, three reports with a row between that says nothing, one run that crashed."""
    for n in range(RUNS):
        run = Run(f"r{n:02d}", "photos", state="crashed" if n == 7 else "finished")
        config = {"optimizer": {"value": {"lr": 0.001 * (n + 1), "nesterov": True}}, "aug": {"value": n % 10 / 10}}
        run.asked["config"] = json.dumps({**config, "_wandb": {"value": {"cli_version": "0.1"}}})
        rows = [{"_step": 2 * e, "epoch": e, "valid": {"acc": 0.5 + 0.1 * e + n / 1000}} for e in range(3)]
        lines = [
            row
            for pair in zip(rows, [{"_step": 2 * e + 1, "loss": 1.0} for e in range(3)], strict=True)
            for row in pair
        ]
        run.streams[HISTORY] = {i: json.dumps(line) for i, line in enumerate(lines)}
        run.streams[SUMMARY] = {0: json.dumps({"valid": {"acc": 0.7}, "_wandb": {"runtime": 5}})}
        server.runs[run.name] = run


def run_import(server: WandbServer, tmp: Path, project: str, key: str = CANARY) -> subprocess.CompletedProcess[str]:
    options = [part for text in MAPS for part in ("--map", text)]
    line = [sys.executable, "-m", "cvtune.cli", "import", project, *options, "--storage", str(tmp / "studies")]
    env = environment(server, tmp / "home") | {"WANDB_API_KEY": key, "WANDB_SILENT": "true"}
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp, timeout=600, check=False)


def test_a_project_becomes_a_study(tmp_path: Path) -> None:
    with wandb_server(CANARY) as server:
        a_project(server)
        done = run_import(server, tmp_path, "team/photos")
        assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "studies" / "photos"
    history = load(folder)
    assert f"{RUNS} of {RUNS} runs of team/photos" in done.stdout
    assert (
        "Searched: optim.lr, augment.strength" in done.stdout or "Searched: augment.strength, optim.lr" in done.stdout
    )
    rows = pq.read_table(folder / "tables" / "epochs.parquet").to_pylist()
    first = [row for row in rows if row["trial"] == "00000"]
    assert [(row["epoch"], row["val_accuracy"]) for row in first] == [(1, 0.5), (2, 0.6), (3, 0.7)]
    assert [record.reason for record in history.trials.values()].count("code_error") == 1
    told = json.loads((folder / "study.json").read_text())["provenance"]["imported"]
    assert told["runs"]["00007"] == "r07" and CANARY not in (folder / "study.json").read_text()
    assert "optimizer.nesterov" in done.stdout  # it is not mapped


def test_a_server_that_refuses_is_said(tmp_path: Path) -> None:
    with wandb_server(CANARY) as server:
        a_project(server)
        refused = run_import(server, tmp_path, "team/photos", key="local-" + "0" * 40)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert not (tmp_path / "studies").exists()
