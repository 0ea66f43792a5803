"""What one report costs the driver: cvtune's journal, replayable scheduler and ledger beside plain Ray Tune.

    uv run python tests/bench/driver_cost.py --trials 200 --reports 10 --rounds 2
    uv run python tests/bench/driver_cost.py --trials 100 1000 3000 --reports 10 --rounds 1 --sides cvtune

Stub trials that train nothing report 25 numbers each, through real actors, under ASHA. `plain` is Ray Tune with its
loggers and its experiment state switched off, `loggers` with both as they are by default; `cvtune` is the real ledger,
referee and proposer with the durable journal in a folder. Each side runs in a process of its own, in the order A B B A.
Wall clock is that of the search, Ray's start left out; CPU time is that of the driver, as is memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvtune import cluster  # sets Ray's environment before Ray is imported
from cvtune.epoch import METRICS

SIDES = ("plain", "loggers", "cvtune")
CLOCKS = ("wall_s", "cpu_s")


def trainable(stops_itself: bool) -> Any:
    from ray import tune

    class Stub(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._count, self._quality = 0, hash(str(new_config["quality"])) % 1000 / 1000
            return True

        def step(self) -> dict[str, Any]:
            self._count += 1
            numbers = {name: float(self._count) for name in METRICS}
            numbers |= {"step": self._count, "epoch": self._count, "val_accuracy": self._quality * self._count}
            return {**numbers, "attempt": 1, "node": "here", "pid": 1}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return Stub


def plain(trials: int, reports: int, folder: Path) -> int:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    done = tune.run(
        trainable(True),
        config={"quality": tune.uniform(0, 1)},
        num_samples=trials,
        scheduler=ASHAScheduler(
            time_attr="step", metric="val_accuracy", mode="max", max_t=reports, grace_period=reports, reduction_factor=3
        ),
        storage_path=str(folder),
        reuse_actors=True,
        verbose=0,
    )
    return sum(int(trial.last_result["step"]) for trial in done.trials)


def ours(trials: int, reports: int, folder: Path) -> int:
    from ray import tune

    from cvtune import ASHA, Budget, Confirm, LogUniform, Recipe, Study, Uniform, space
    from cvtune.journal import Journal
    from cvtune.ledger import Ledger
    from cvtune.phases import Phases
    from cvtune.tune import Proposer, Referee

    study = Study(
        objective="val_accuracy",
        recipe=Recipe().replace({"max_epochs": reports}),
        space=space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1e-1)}),
        scheduler=ASHA(grace_epochs=reports),
        budget=Budget(trials=trials),
        noise_seeds=0,
        confirm=Confirm(top=0),
    )
    (folder / "journal").mkdir()
    resources = {"CPU": 1.0}
    ledger = Ledger(study, folder, Journal(folder / "journal" / "0001.jsonl"), resources)
    ledger.note(
        "open", {"term": 1, "saw_term": 0, "saw": 0, "host": "here", "pid": os.getpid(), "resources": resources}
    )
    slots = cluster.slots_of(resources, {}, None)
    referee = Referee(ledger, {"quality": 0}, slots)
    proposer = Proposer(ledger, referee, Phases(ledger), slots)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots())
    tune.run(
        trainable(False), storage_path=str(folder / ".ray"), search_alg=proposer, scheduler=referee, reuse_actors=True,
        verbose=0,
    )  # fmt: skip
    ledger.close()
    return ledger.history.epochs


def one(side: str, trials: int, reports: int) -> dict[str, Any]:
    """Run one side in this process."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    with tempfile.TemporaryDirectory() as folder:
        before_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        done = (ours if side == "cvtune" else plain)(trials, reports, Path(folder))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_memory) / 1024
    return {"side": side, "trials": trials, "reports": done, "wall_s": wall, "cpu_s": cpu, "grown_mb": grown}


def run(side: str, trials: int, reports: int) -> dict[str, Any]:
    """One side in a process of its own, with the loggers of Ray Tune where it is to have them."""
    default = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0", "TUNE_GLOBAL_CHECKPOINT_S": "auto"}
    command = [sys.executable, __file__, "--side", side, "--trials", str(trials), "--reports", str(reports)]
    env = {**os.environ, **(default if side == "loggers" else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side}, {trials} trials: {found['reports'] / found['wall_s']:.1f} reports per second, "
        f"{1000 * found['cpu_s'] / found['reports']:.2f} ms of driver CPU per report, {found['reports']} reports, "
        f"{found['wall_s']:.0f} s, memory +{found['grown_mb']:.0f} MB",
        flush=True,
    )
    return found


def summary(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Reports per second of cvtune over those of each other side, and its CPU time per report over theirs."""
    for side in sorted({r["side"] for r in runs} - {"cvtune"}):
        both = [[r for r in runs if r["side"] == name] for name in ("cvtune", side)]
        rate, each = ([statistics.median(r["reports"] / r[what] for r in of) for of in both] for what in CLOCKS)
        yield f"cvtune / {side}: reports per second {rate[0] / rate[1]:.2f}, CPU time of each {each[1] / each[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[200])
    parser.add_argument("--reports", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help="run one side once, in this process")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one(given.side, given.trials[0], given.reports)))
        return
    for trials in given.trials:
        runs = [
            run(side, trials, given.reports)
            for number in range(given.rounds)
            for side in (given.sides if number % 2 == 0 else reversed(given.sides))
        ]
        if "cvtune" in given.sides:
            print(*summary(runs), sep="\n", flush=True)


if __name__ == "__main__":
    main()
