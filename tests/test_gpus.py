"""Studies on a Ray that offers GPUs which are none: what Ray is asked for, and what is left behind. Trains on CPUs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cvtune.history import load
from cvtune.journal import read
from tests.invariants import check, marked, no_process_is_left

SETTINGS = {
    "max_epochs": 2,
    "data.image_size": 16,
    "data.report_images": 64,
    "model.width": 4,
    "noise_seeds": 0,
    "confirm.top": 0,
    "budget.trials": 3,
    "scheduler.name": "fifo",
    "tracking.mode": "off",
    "resources.label": "kind=in(A,B)",
}
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {roots!r}
from cvtune import cluster, engine
from cvtune.packing import Packing
from cvtune.study import for_data
cluster.granted = lambda: {{"num_cpus": 4, "num_gpus": 2, "labels": {{"kind": "A"}}}}
engine.packed = lambda *_: Packing(3, "made up")
study = for_data("digits").set({settings!r})
print(engine.run_study(study, Path({tmp!r}) / "studies", Path({tmp!r}) / "cache", roots={roots!r}, say=print).signal)
"""
CRAMPED = """
from pathlib import Path
import torch
from torch import nn
MARK = Path({mark!r})

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(16 * 16 * 3, classes)

    def forward(self, x):
        if self.training and len(x) > 4 and not MARK.exists():  # 4: the check before the first trial
            MARK.touch()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layer(x.flatten(1))

def build(classes, recipe):
    return Net(classes)
"""


def run(tmp: Path, **changes: Any) -> list[Any]:
    """The events of a study that ran to its end."""
    mark = marked()
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    script = SCRIPT.format(settings=settings, tmp=str(tmp), roots=(str(tmp), str(Path(__file__).parents[1])))
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, cwd=tmp, env={**os.environ, **mark})
    assert done.returncode == 0 and done.stdout.rstrip().endswith("None"), done.stderr[-3000:]
    check(tmp / "studies" / "digits", 0, mark)
    no_process_is_left(mark)
    return list(read(tmp / "studies" / "digits"))


@pytest.mark.long
def test_trials_that_span_two_gpus_run_on_the_labelled_node_and_leave_nothing(tmp_path: Path) -> None:
    events = run(tmp_path, resources__gpu=2, resources__cpu=2)
    assert events[0]["resources"] == {"CPU": 2.0, "GPU": 2.0}
    records = load(tmp_path / "studies" / "digits").trials.values()
    assert [(r.reason, r.steps) for r in records] == [("completed", 2)] * 3


@pytest.mark.long
def test_a_trial_that_runs_out_of_memory_in_its_share_is_taken_up_with_a_larger_one(tmp_path: Path) -> None:
    (tmp_path / "cramped.py").write_text(CRAMPED.format(mark=str(tmp_path / "ran-out")))
    events = run(tmp_path, resources__gpu="auto", model__name="python:cramped:build")
    shares = [event for event in events if event["kind"] == "share"]
    assert [share["trials"] for share in shares] == [3, 2] and shares[0]["why"] == "made up"
    retry = next(event for event in events if event["kind"] == "retry")
    assert retry["trial"] in shares[1]["why"] and "out of memory in its share" in retry["why"]
    records = load(tmp_path / "studies" / "digits").trials.values()
    assert [(r.reason, r.steps) for r in records] == [("completed", 2)] * 3
