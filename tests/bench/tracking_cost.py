"""What tracking costs: CPU of our syncer and of Ray's WandbLoggerCallback on the same results; training time beside it.

Ours sends a picture with each report, the callback none.

    uv run python tests/bench/tracking_cost.py --trials 24 --reports 9 --rounds 2
    PYTHONPATH=. uv run python tests/bench/tracking_cost.py --train workflows/quickstart.py --rounds 2

The first line replays one journal with W&B offline: `cvtune` is the whole syncer, from its start to its end; `callback`
is Ray with the callback, `ray` the same program without it, so that the difference is what the callback costs. The
second trains the same epochs with tracking off, offline, and online with servers in several moods (see
`tests/tracking/wandb_server.py`), and compares the seconds that the epochs took. Order A B B A. All processes of a side
count, W&B's own included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from meter import Usage, measure

from cvtune import history, strips
from cvtune.epoch import METRICS
from cvtune.journal import Journal
from cvtune.recipe import Recipe
from cvtune.sections import Budget, Tracking
from cvtune.space import LogUniform, Uniform, space
from cvtune.study import Study

MOODS = ("off", "offline", "fine", "silent", "500", "429", "401", "slow")
SIZE = ("budget.trials=8", "max_epochs=9", "data.image_size=24")
SLOTS = 2  # trials that report in turns, as they would on two cores


def write(folder: Path, trials: int, reports: int) -> None:
    """A study of so many finished trials."""
    study = Study(
        name=folder.name,
        objective="val_accuracy",
        recipe=Recipe().replace({"max_epochs": reports}),
        space=space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1e-1)}),
        budget=Budget(trials=trials),
        tracking=Tracking(mode="offline"),
    )
    (folder / "journal").mkdir(parents=True)
    (folder / "study.json").write_text(study.to_json({"created": 1.0, "data_fingerprint": "0" * 16}))
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (8, 64, 64, 3), np.uint8)
    strip = strips.draw(pixels, np.arange(8), noise.dirichlet(np.ones(8), 8).astype(np.float32), list("abcdefgh"))
    journal = Journal(folder / "journal" / "0001.jsonl")
    for index in range(trials):
        name, values = f"{index:05d}", {"augment.strength": index / trials, "optim.lr": 1e-3}
        trial = {"trial": name, "index": index, "number": index, "role": "search", "label": "", "values": values}
        recipe = study.trial(index, values).model_dump(mode="json", exclude_defaults=True)
        journal.append("trial", {**trial, "recipe": recipe, "waiting": False})
        media = folder / "trials" / name / "1" / "media"
        media.parent.mkdir(parents=True)
        for step in range(1, reports + 1):
            numbers = dict.fromkeys(METRICS, (index + step) / (trials + reports)) | {"step": step, "epoch": step}
            event = {"trial": name, "attempt": 1, "segment": 0, **numbers, "answer": "go", "acts": [], "message": ""}
            strips.save(media, step, strip)
            journal.append("epoch", event | {"reason": "completed" if step == reports else None})
    journal.close()


@dataclass(frozen=True, eq=False)
class Stub:
    """What the callback asks of one of Ray Tune's trials."""

    trial_id: str
    config: dict[str, Any]
    local_path: str
    experiment_dir_name: str = "study"

    def __str__(self) -> str:
        return self.trial_id


def replay(study: Path, with_callback: bool) -> None:
    """Ray, and the results of a study one after another through its callback."""
    import ray
    from ray.air.integrations.wandb import WandbLoggerCallback

    ray.init("local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    callback = WandbLoggerCallback(project="tests", mode="offline") if with_callback else None
    if callback:
        callback.setup()
    records = list(history.load(study).trials.values())
    stubs = []
    for record in records:
        place = study / "ray" / record.trial
        place.mkdir(parents=True)
        stubs.append(Stub(record.trial, record.recipe.flat(), str(place)))
    for begin in range(0, len(records), SLOTS):
        pairs = list(zip(records, stubs, strict=True))[begin : begin + SLOTS]
        for step in range(max(len(record.epochs) for record, _ in pairs)):
            for record, stub in pairs:
                if callback and step < len(record.epochs):
                    event = {name: record.epochs[step][name] for name in METRICS}
                    callback.log_trial_result(step, stub, event | {"training_iteration": step + 1})
        for _, stub in pairs:
            if callback:
                callback.log_trial_end(stub)
    if callback:
        callback.on_experiment_end(stubs)
    ray.shutdown()


def side(name: str, trials: int, reports: int) -> Usage:
    """Run one side on a fresh copy of the study."""
    with tempfile.TemporaryDirectory(prefix="cost", dir="/tmp") as folder:
        study = Path(folder) / "study"
        write(study, trials, reports)
        ours = ["-m", "cvtune.track", str(study), "--mode", "offline"]
        theirs = [__file__, "--replay", str(study), *(["--callback"] if name == "callback" else [])]
        environ = {**os.environ, "WANDB_MODE": "offline", "RAY_TMPDIR": str(Path(folder) / "ray")}
        usage = measure([sys.executable, *(ours if name == "cvtune" else theirs)], Path(folder) / "log", environ)
        files = list(study.rglob("*.wandb"))
        expected = {"cvtune": trials + 1, "callback": trials, "ray": 0}[name]
        if usage.returncode or len(files) != expected:
            raise SystemExit(f"{name}: {len(files)} files\n{(Path(folder) / 'log').read_text()}")
    return usage


def train(workflow: str, how: str) -> tuple[float, float]:
    """Seconds that the epochs took, summed over the trials, and CPU seconds in all, tracked like this.

    Args:
        how: off, offline, or the mood of a server.
    """
    from tests.tracking.wandb_server import wandb_server

    mode = how if how in ("off", "offline") else "online"
    # Nothing is stopped and nothing confirmed: each side trains the same epochs.
    fixed = ["scheduler.name=fifo", "noise_seeds=0", "confirm.top=0", f"tracking.mode={mode}", "tracking.wait_s=20"]
    with tempfile.TemporaryDirectory(prefix="cost", dir="/tmp") as folder, wandb_server("k" * 40, idle=True) as server:
        server.behave("fine" if mode == how else how)
        line = [sys.executable, "-m", "cvtune.cli", "run", workflow, "--name", "cost"]
        line += [part for setting in (*SIZE, *fixed) for part in ("--set", setting)]
        places = ["--storage", f"{folder}/studies", "--cache", f"{folder}/cache"]
        environ = {**os.environ, "WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server.url}
        usage = measure([*line, *places], Path(folder) / "log", environ)
        if usage.returncode:
            raise SystemExit((Path(folder) / "log").read_text())
        trials = history.load(Path(folder) / "studies" / "cost").trials.values()
    return sum(event["seconds"] for record in trials for event in record.epochs), usage.cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--reports", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--train", metavar="WORKFLOW", help="measure training time beside tracking instead")
    parser.add_argument("--moods", nargs="*", default=MOODS, help="with --train: what is compared with the first")
    parser.add_argument("--replay", type=Path, help="what one side does: a study to replay")
    parser.add_argument("--callback", action="store_true", help="with --replay: through the callback")
    given = parser.parse_args()
    if given.replay:
        replay(given.replay, given.callback)
        return
    sides = given.moods if given.train else ("cvtune", "ray", "callback")
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(given.rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            if given.train:
                took, used = train(given.train, name)
            else:
                usage = side(name, given.trials, given.reports)
                took, used = usage.wall_s, usage.cpu_s
            cpu[name].append(used)
            wall[name].append(took)
            print(f"{name}: {used:.1f} s of CPU, {took:.1f} s", flush=True)
    used = {name: statistics.median(values) for name, values in cpu.items()}
    if given.train:
        first = sides[0]
        for name in sides[1:]:
            longer = [mine / its - 1 for mine, its in zip(wall[name], wall[first], strict=True)]  # round by round
            middle = f"{statistics.median(longer):+.1%} of the epochs' time ({min(longer):+.1%} to {max(longer):+.1%})"
            print(f"{name}: {middle}, {used[name] - used[first]:+.1f} s of CPU")
        return
    theirs = (used["callback"] - used["ray"]) / given.trials
    print(f"cvtune: {used['cvtune']:.1f} s for {given.trials} trials, {used['cvtune'] / given.trials:.2f} s per trial")
    print(f"callback: {theirs:.2f} s per trial, {theirs / (used['cvtune'] / given.trials):.1f} times as much")


if __name__ == "__main__":
    main()
