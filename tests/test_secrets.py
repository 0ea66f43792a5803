"""Keys and tokens of the environment: in no file that cvtune writes, and in nothing that it prints."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

KEY = "local-" + secrets.token_hex(17)  # 40 characters, as W&B's own keys
TOKEN = secrets.token_hex(32)  # as Ray's
SETTINGS = (
    *("data.image_size=16", "model.width=4", "augment.flip=none", "data.train_fraction=0.2", "max_epochs=1"),
    *("budget.trials=2", "noise_seeds=0", "confirm.top=0", "tracking.mode=off"),
)


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr((table.schema.metadata, [(f.name, f.metadata) for f in table.schema], table.to_pylist())).encode()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def shown(folder: Path) -> dict[str, str]:
    """Each secret that is found in some file below `folder`, and where."""
    spelled = [(s, form) for s in (KEY, TOKEN) for form in (s, base64.b64encode(s.encode()).decode())]
    every = [(path, content) for path in folder.rglob("*") if path.is_file() for content in contents(path)]
    return {s: str(path) for path, content in every for s, form in spelled if form.encode() in content}


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", f"{KEY}\n" * 9)
    assert shown(tmp_path) == {KEY: str(tmp_path / "a.zip")}


@pytest.mark.long
def test_no_file_and_no_line_holds_a_secret_of_the_environment(tmp_path: Path) -> None:
    """Of a run, its report, an export, a comparison: each is written with the secrets at hand.

    Slurm's scripts: `cluster/test_slurm_scripts.py`; deliveries to W&B: `tracking/test_online_run.py`.
    """
    env = {**os.environ, "WANDB_API_KEY": KEY, "RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "token", "CVTUNE_REPORT": "1"}
    env |= {"HOME": str(tmp_path / "home")}
    study = tmp_path / "studies" / "digits"

    def cvtune(*arguments: str) -> None:
        line = [sys.executable, "-m", "cvtune.cli", *arguments]
        done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert KEY not in done.stdout + done.stderr and TOKEN not in done.stdout + done.stderr, arguments

    places = ("--storage", str(study.parent), "--cache", str(tmp_path / "cache"))
    cvtune("run", "digits", *(part for setting in SETTINGS for part in ("--set", setting)), *places)
    cvtune("report", str(study))
    for form in ("parquet", "csv", "optuna"):
        cvtune("export", str(study), "--to", str(tmp_path / "exported" / form), "--format", form)
    cvtune("compare", str(study), str(study), "-o", str(tmp_path / "compare.html"))
    cvtune("doctor")
    written = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".html", ".csv", ".parquet", ".jsonl", ".json", ".txt", ".safetensors"} <= written
    assert not shown(tmp_path)
