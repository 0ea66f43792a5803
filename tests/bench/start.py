"""From the command to the first training step: `cvtune run` beside a bare script that starts Ray and imports torch.

    uv run python tests/bench/start.py --rounds 3

- ours: `cvtune run` of a study on scikit-learn's digits with a model of the user's own that notes when it first trains
  in a worker of Ray. Images are checked and stored, both ends of the space rehearsed, a journal opened.
- bare: a script that starts Ray on as many cores and has one worker import torch and train one step of the same model.

Both run in the order A B B A in folders that begin empty, after one run of each that fills the page cache and bytecode.
Wall clock is from the start of the command to the first step; CPU time is that of the whole tree until it has ended.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from meter import measure
from ruler import environment, ratio

MODEL = """
import sys, time
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        mark = Path({mark!r})
        if self.training and "ray" in sys.modules and not mark.exists():
            mark.write_text(str(time.time()))
        return self.head(self.body(x))

def model(num_classes, recipe):
    return Net(num_classes)
"""
STUDY = """
from cvtune import ASHA, Budget, Confirm, LogUniform, Recipe, Study, Tracking, Uniform, space

def study():
    return Study(
        recipe=Recipe().replace({"model.name": "python:start_net:model", "max_epochs": 1, "data.image_size": 16}),
        space=space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-3, 1e-1)}),
        scheduler=ASHA(controls=0), budget=Budget(trials=2), noise_seeds=0, confirm=Confirm(top=0),
        tracking=Tracking(mode="off"),
    ).set({"data.source": "digits"})
"""
BARE = """
import ray

@ray.remote
def train():
    import torch
    from start_net import model
    net = model(10, None)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    torch.nn.functional.cross_entropy(net(torch.rand(64, 3, 16, 16)), torch.randint(10, (64,))).backward()
    optimizer.step()

ray.init()
ray.get(train.remote())
ray.shutdown()
"""


def once(side: str, bytecode: Path) -> tuple[float, float]:
    """Seconds to the first step, and CPU-seconds of the whole command, of one run.

    Raises:
        RuntimeError: the command failed; the message ends with the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        scratch = Path(name)
        (scratch / "start_net.py").write_text(MODEL.format(mark=str(scratch / "mark")))
        (scratch / "start_study.py").write_text(STUDY)
        (scratch / "bare.py").write_text(BARE)
        run = [
            "run",
            str(scratch / "start_study.py"),
            "--storage",
            str(scratch),
            "--cache",
            str(scratch),
            "--no-report",
        ]
        command = [str(Path(sys.executable).with_name("cvtune")), *run]
        if side == "bare":
            command = [sys.executable, str(scratch / "bare.py")]
        env = {**environment(bytecode), "PYTHONPATH": str(scratch), "CVTUNE_REPORT": "0"}
        usage = measure(command, scratch / "log.txt", env)
        if usage.returncode or not (scratch / "mark").exists():
            raise RuntimeError(f"{side} ended with {usage.returncode}:\n{(scratch / 'log.txt').read_text()[-4000:]}")
        return float((scratch / "mark").read_text()) - usage.started, usage.cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="start-bytecode-") as name:
        for side in found:
            once(side, Path(name))
        for number in range(given.rounds):
            for side in found if number % 2 == 0 else reversed(found):
                found[side].append(once(side, Path(name)))
                print(f"round {number} {side}: {found[side][-1][0]:.2f} s, {found[side][-1][1]:.1f} CPU-s", flush=True)
    for column, unit in enumerate(("s to the first step", "CPU-seconds of the whole command")):
        ours, bare = ([run[column] for run in found[side]] for side in ("ours", "bare"))
        told = "{:.2f} ({:.2f} to {:.2f})".format(*ratio(ours, bare))
        print(f"{unit}: ours {statistics.median(ours):.2f}, bare {statistics.median(bare):.2f}, ratio {told}")


if __name__ == "__main__":
    main()
