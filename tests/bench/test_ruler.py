"""The ruler measures what it says: bootstrap, process tree, and that both sides are asked for the same thing."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stamps
from meter import Meter, Times, Usage, measure
from ruler import (
    SCRIPTS,
    Plan,
    Result,
    copy_peers,
    earlier,
    numbers,
    our_command,
    our_result,
    peer_command,
    ratio,
    summary,
    turns,
    write,
)
from stamps import Trained

from cvtune import study
from cvtune.augment import Pipeline
from cvtune.models import build_model, check_model

HERE = Path(__file__).resolve().parent
PEERS = {
    "textbook_ray.py": "f63012b0f48911c387778d93bebd9f892781816534dc309e9a07b150ae6ca3c8",
    "tuned_ray.py": "ca37c1484c92da0af31922f6cdcdcd60bd2c96de4793c7950b0345b8ab1c0f53",
}
PLAN = Plan(Path("photos"), ("textbook",), samples=4, max_epochs=2, image_size=32)

FAMILY = """
import os, time

def burn(seconds):  # CPU seconds of this process
    while time.process_time() < seconds:
        pass
    os._exit(0)

for _ in range(10):  # short children that are waited for, as a DataLoader's workers
    if os.fork() == 0:
        burn(0.08)
    os.wait()
if os.fork() == 0:
    os.setsid()  # a daemon, as Ray's: its parent is gone at once and nobody waits for it
    if os.fork() == 0:
        burn(1.0)
    os._exit(0)
os.wait()
"""


def test_ratio_of_known_numbers() -> None:
    assert ratio([2, 2, 2], [4, 4, 4]) == (0.5, 0.5, 0.5)
    # the median of two draws from (1, 3) is 1, 2 or 3 with probabilities 1/4, 1/2, 1/4
    assert ratio([1, 3], [1]) == (2.0, 1.0, 3.0)
    assert ratio([1, 2, 9], [3, 4, 5]) == ratio([1, 2, 9], [3, 4, 5])


def test_ratio_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    intervals = [ratio(rng.normal(10, 1, 15).tolist(), rng.normal(20, 2, 15).tolist(), draws=500) for _ in range(200)]
    assert 0.88 < np.mean([low < 0.5 < high for _, low, high in intervals]) <= 1


def test_turns_alternate() -> None:
    assert [side[0] for _, side in turns(4, ["textbook"])] == list("ottootto")
    assert [side[:2] for _, side in turns(2, ["textbook", "tuned"])] == ["ou", "te", "tu", "tu", "te", "ou"]
    assert [number for number, _ in turns(2, ["textbook"])] == [0, 0, 1, 1]


def test_meter_counts_daemons_and_short_children_once(tmp_path: Path) -> None:
    usage = measure([sys.executable, "-S", "-c", FAMILY], tmp_path / "log.txt", os.environ)
    assert usage.returncode == 0
    assert 1.3 < usage.cpu_s < 2.2  # 1.0 and 10 x 0.08; a daemon may lose what it does after its last sample
    assert usage.peak_pss_mb > 1


def test_meter_counts_once_what_ended_together_with_its_parent() -> None:
    """The parent was last seen before it waited for its children, and handed their times up all the same."""

    @dataclass(frozen=True)
    class Process:
        pid: int

    meter = Meter()
    me, root, *workers = map(Process, (1, 2, 3, 4))
    meter._last = {worker: Times(2, 240.0, 1.0) for worker in workers}  # type: ignore[misc]
    meter._last |= {root: Times(1, 3.0, 0.0), me: Times(0, 0.0, 485.0)}  # type: ignore[dict-item]
    assert meter.cpu_s == 485.0
    meter._last |= {root: Times(1, 3.0, 484.0), me: Times(0, 0.0, 487.0)}  # type: ignore[dict-item]  # 2 of a short one
    assert meter.cpu_s == 487.0


def test_meter_ends_what_stays(tmp_path: Path) -> None:
    code = "import os, time\npid = os.fork()\nif pid: print(pid, flush=True)\nelse: os.setsid(); time.sleep(60)"
    usage = measure([sys.executable, "-S", "-c", code], tmp_path / "log.txt", os.environ, linger_s=0)
    pid = int((tmp_path / "log.txt").read_text())
    assert usage.wall_s < 10
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_unchanged(name: str) -> None:
    assert hashlib.sha256((HERE / "peers" / name).read_bytes()).hexdigest() == PEERS[name]


def test_study_is_valid_and_asked_as_the_peer_is(tmp_path: Path) -> None:
    command = our_command(PLAN, 7, tmp_path)
    values = dict(study.parse_assignment(command[i + 1]) for i, part in enumerate(command) if part == "--set")
    chosen = study.load(str(HERE / "peer_study.py")).set(values)
    peer = peer_command(PLAN, "textbook", 7, tmp_path)
    asked = dict(zip(peer[3::2], peer[4::2], strict=True))
    assert chosen.budget.trials == int(asked["--samples"]) == 4
    assert chosen.recipe.max_epochs == int(asked["--max-epochs"]) == 2
    assert chosen.recipe.data.image_size == int(asked["--image-size"]) == 32
    assert chosen.recipe.seed == int(asked["--seed"]) == 7
    assert chosen.resources.max_concurrent == int(asked["--cpus"]) == 2
    assert chosen.data.source == peer[2] == "photos"
    searched = {"augment.strength", "optim.lr", "regularize.dropout", "regularize.weight_decay"}
    assert set(chosen.space.domains) == searched


def test_parts_fit_cvtune() -> None:
    recipe = study.load(str(HERE / "peer_study.py")).recipe.replace({"regularize.dropout": 0.25})
    network = build_model(recipe, 6, 64)
    check_model(network, 6, 64)
    assert [m.p for m in network.module.modules() if type(m).__name__ == "Dropout"] == [0.25]
    photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for strength in (0.0, 0.5, 1.0):
        policy = Pipeline(recipe.augment.model_copy(update={"strength": strength}), 64, "squash")
        out = policy(photo, seed=3)
        assert out.shape == (64, 64, 3) and out.dtype == np.uint8


def test_our_result_comes_from_the_tables(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "peer_study"
    (folder / "tables").mkdir(parents=True)
    trials = {"trial": ["00000", "00001"], "reason": ["completed", "stopped_scheduler"], "epochs": [2, 1]}
    pq.write_table(pa.table({**trials, "best": [0.5, 0.7], "last": [0.5, 0.4]}), folder / "tables" / "trials.parquet")
    pq.write_table(pa.table({"step": [1, 2, 1]}), folder / "tables" / "epochs.parquet")
    assert our_result(tmp_path) == Result(2, 3, 0.7)
    pq.write_table(pa.table({"step": [1, 2]}), folder / "tables" / "epochs.parquet")
    with pytest.raises(AssertionError, match=r"epochs.parquet has 2 rows, trials.parquet counts 3"):
        our_result(tmp_path)


def test_peers_are_run_as_copies_that_stamp(tmp_path: Path) -> None:
    copy_peers(tmp_path)
    for name in SCRIPTS.values():
        text = (tmp_path / "peers" / f"{name}.py").read_text()
        compile(text, name, "exec")
        kept = HERE / "peers" / f"{name}.py"
        lines = [line for line in text.splitlines() if "stamps" not in line]
        assert lines == [line for line in kept.read_text().splitlines() if "stamps" not in line]
        assert ("stamps.watch()" in text) == (kept.name in PEERS)  # our own stamp in plain.py


def test_stamps_tell_trials_of_one_process_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: list[Any] = []
    module = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(module, "register_optimizer_step_post_hook", hooks.append)
    stamps.watch()
    stamps.reported()
    assert hooks == [] and list(tmp_path.iterdir()) == []  # nobody has asked for stamps
    monkeypatch.setenv(stamps.FOLDER, str(tmp_path))
    monkeypatch.setattr(stamps.watch, "done", False, raising=False)
    stamps.watch()
    stamps.watch()
    (stepped,) = hooks
    for optimizer in (SimpleNamespace(), SimpleNamespace()):
        for _ in range(2):
            stepped(optimizer, (), {})
    stamps.reported()
    (path,) = tmp_path.glob("*.txt")
    assert [line.split()[1] for line in path.read_text().splitlines()] == ["first", "step", "step"] * 2 + ["report"]
    first, second = stamps.read(tmp_path)
    assert first.first <= first.last <= second.first <= second.last


def test_turnaround_is_from_a_trials_end_to_the_next_first_step() -> None:
    # two slots: trial 2 follows trial 1 (ended at 5), trial 3 follows trial 0 (ended at 9)
    trials = [Trained(0, 9), Trained(1, 5), Trained(5.5, 20), Trained(10, 21)]
    assert stamps.turnarounds(trials, 2) == [0.5, 1]
    assert stamps.turnarounds(trials[:2], 2) == []


def test_samples_are_kept_continued_and_summarized(tmp_path: Path) -> None:
    trained = [Trained(9.0, 12.0), Trained(9.0, 13.0), Trained(12.5, 20.0)]
    rows = [
        {
            "side": side,
            "round": i,
            "order": i,
            "load": 0.1,
            **numbers(Usage(0, 0.0, wall, 2 * wall, 900.0), result, trained),
        }
        for i in range(2)
        for side, wall, result in (("ours", 20.0, Result(4, 10, 0.8)), ("textbook", 40.0, Result(4, 8, 0.7)))
    ]
    path = tmp_path / "out" / "samples.parquet"
    assert earlier(PLAN, path) == []
    write(rows, PLAN, path)
    table = pq.read_table(path)
    assert table.to_pylist() == earlier(PLAN, path) == rows
    assert json.loads(table.schema.metadata[b"ruler"])["max_epochs"] == 2
    assert rows[0]["start_s"] == 9 and rows[0]["turnaround_s"] == 0.5
    text = summary(rows, "textbook")
    assert "0.400 (0.400 to 0.400)" in text  # 2 s to 5 s of wall clock per epoch
    assert "0.284 (0.284 to 0.284)" in text  # 1.1 s to 3.875 s without the start
    with pytest.raises(SystemExit, match="samples that differ in max_epochs"):
        earlier(replace(PLAN, max_epochs=3), path)
