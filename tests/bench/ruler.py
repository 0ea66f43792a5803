"""Ours against a peer: the same search by both in turns, with time, CPU time and memory of the whole process tree.

    uv run python tests/bench/ruler.py DATA_DIR --samples 16 --max-epochs 9 --image-size 64 --rounds 3 --peer textbook

DATA_DIR holds train/<class>/* and val/<class>/*. Every run begins with empty folders; both sides get the same two
CPUs, no GPU and, per round, the same seed. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from meter import Usage, measure

from cvtune import journal

HERE = Path(__file__).resolve().parent
CPUS = 2
PACKAGES = ("cvtune", "ray", "torch", "albumentations", "numpy", "opencv-python-headless")
PEER_SCOPE = {"textbook": "best", "tuned": "last"}  # which of a trial's accuracies the peer chooses its best trial by
NORMAL_ENDS = {"completed", "stopped_scheduler", "diverged"}


@dataclass(frozen=True)
class Plan:
    """What both sides are asked to do."""

    data: Path
    peer: str
    samples: int
    max_epochs: int
    image_size: int


@dataclass(frozen=True)
class Result:
    """What one side says that it did."""

    trials: int
    epochs: int
    best_accuracy: float
    first_epoch_s: float | None = None


COLUMNS: dict[str, tuple[pa.DataType, str, str]] = {  # name -> type, unit, description
    "side": (pa.string(), "", "ours, or the peer's name."),
    "round": (pa.int64(), "", "Round, from 0; also the seed of both sides."),
    "order": (pa.int64(), "", "Position among all runs, from 0."),
    "load": (pa.float64(), "", "Load average of the machine over the minute before the run."),
    "wall_s": (pa.float64(), "s", "Wall clock from the start of the command to its end."),
    "cpu_s": (pa.float64(), "s", "CPU time of the whole process tree."),
    "peak_pss_mb": (pa.float64(), "MB", "Largest sum of the proportional set sizes of the process tree."),
    "trials": (pa.int64(), "trials", "Trials started."),
    "epochs": (pa.int64(), "epochs", "Epochs trained by all trials."),
    "best_accuracy": (pa.float64(), "", "Validation accuracy of the best trial, by the peer's rule on both sides."),
    "first_epoch_s": (pa.float64(), "s", "From the start to the first finished epoch; null for peers."),
    "s_per_epoch": (pa.float64(), "s", "wall_s / epochs."),
    "cpu_s_per_epoch": (pa.float64(), "s", "cpu_s / epochs."),
}
SHOWN = {  # column -> label and whether the ratio is shown
    "wall_s": ("wall clock, s", False),
    "epochs": ("epochs trained", False),
    "s_per_epoch": ("time per trained epoch, s", True),
    "cpu_s_per_epoch": ("CPU time per trained epoch, s", True),
    "peak_pss_mb": ("peak memory (PSS), MB", True),
    "first_epoch_s": ("start to first epoch, s", False),
    "best_accuracy": ("best validation accuracy", False),
}


def our_command(plan: Plan, seed: int, scratch: Path) -> list[str]:
    """The command of our side; all that it keeps lies in `scratch`."""
    values = {
        "data.source": plan.data,
        "data.image_size": plan.image_size,
        "max_epochs": plan.max_epochs,
        "seed": seed,
        "budget.trials": plan.samples,
        "resources.max_concurrent": CPUS,
    }
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    folders = ["--storage", str(scratch / "studies"), "--cache", str(scratch / "cache")]
    return [sys.executable, "-m", "cvtune.cli", "run", str(HERE / "peer_study.py"), *folders, *settings]


def peer_command(plan: Plan, seed: int, scratch: Path) -> list[str]:
    """The command of the peer; all that it keeps lies in `scratch`."""
    values = {
        "samples": plan.samples,
        "max-epochs": plan.max_epochs,
        "image-size": plan.image_size,
        "seed": seed,
        "cpus": CPUS,
        "out": scratch / "result.json",
        "storage": scratch / "ray",
    }
    settings = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(HERE / "peers" / f"{plan.peer}_ray.py"), str(plan.data), *settings]


def our_result(plan: Plan, scratch: Path, started: float) -> Result:
    """What our tables and journal say. `started` is in seconds since 1970."""
    folder = scratch / "studies" / "peer_study"
    trials = pq.read_table(folder / "tables" / "trials.parquet").to_pydict()
    rows, counted = pq.read_metadata(folder / "tables" / "epochs.parquet").num_rows, sum(trials["epochs"])
    assert rows == counted, f"epochs.parquet has {rows} rows, trials.parquet counts {counted}"
    strange = set(trials["reason"]) - NORMAL_ENDS
    assert not strange, f"trials of ours ended as {strange}"
    first = min(event["t"] for event in journal.read(folder) if event["kind"] == "epoch")
    return Result(len(trials["trial"]), rows, max(trials[PEER_SCOPE[plan.peer]]), first - started)


def peer_result(scratch: Path) -> Result:
    """What the peer's result file says."""
    told = json.loads((scratch / "result.json").read_text())
    assert told["errors"] == 0, f"{told['errors']} trials of the peer failed"
    return Result(told["trials"], told["epochs"], told["best_val_accuracy"])


def environment(bytecode: Path) -> dict[str, str]:
    """The same for both sides: nobody's settings, no GPU, no network, workers started by plain Python.

    Args:
        bytecode: folder where compiled Python is kept from run to run, as every installation has it.
    """
    dropped = ("RAY_", "TUNE_", "CVTUNE_", "OMP_", "PYTHON")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(dropped)},
        "PYTHONPYCACHEPREFIX": str(bytecode),
        "CUDA_VISIBLE_DEVICES": "",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would start every worker of the peer through uv
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def run_once(plan: Plan, side: str, seed: int, bytecode: Path) -> tuple[Usage, Result]:
    """One run of one side in folders of its own.

    Raises:
        RuntimeError: the command failed; the message ends with the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="ruler-") as name:
        scratch = Path(name)
        command = (our_command if side == "ours" else peer_command)(plan, seed, scratch)
        usage = measure(command, scratch / "log.txt", environment(bytecode))
        if usage.returncode:
            raise RuntimeError(f"{side} ended with {usage.returncode}:\n{(scratch / 'log.txt').read_text()[-4000:]}")
        return usage, our_result(plan, scratch, usage.started) if side == "ours" else peer_result(scratch)


def turns(rounds: int, peer: str) -> Iterator[tuple[int, str]]:
    """Rounds and sides in the order A B B A A B ..., so that a drift of the machine meets both alike."""
    for number in range(rounds):
        for side in ("ours", peer) if number % 2 == 0 else (peer, "ours"):
            yield number, side


def ratio(ours: Sequence[float], peer: Sequence[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Ratio of medians ours / peer with its 95 % bootstrap interval (percentiles, sides drawn independently)."""
    rng = np.random.default_rng(0)
    above, below = (np.median(rng.choice(side, (draws, len(side))), axis=1) for side in (ours, peer))
    low, high = np.quantile(above / below, (0.025, 0.975))
    return float(np.median(ours) / np.median(peer)), float(low), float(high)


def write(rows: list[dict[str, Any]], plan: Plan, path: Path) -> None:
    """The raw samples as Parquet, columns with unit and description, versions beside them."""
    fields = [pa.field(n, kind, metadata={"unit": unit, "description": d}) for n, (kind, unit, d) in COLUMNS.items()]
    versions = {name: version(name) for name in PACKAGES}
    about = {**asdict(plan), "data": plan.data.name, "cpus": CPUS, "versions": versions}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields, metadata={"ruler": json.dumps(about)})), path)


def summary(rows: list[dict[str, Any]], peer: str) -> str:
    """Medians of each side, and ours / peer with its interval."""
    lines = [f"{'median of runs':32}{'ours':>10}{peer:>10}   ours / {peer}, 95 % interval"]
    for column, (label, compared) in SHOWN.items():
        ours, theirs = ([row[column] for row in rows if row["side"] == side] for side in ("ours", peer))
        cells = "".join(f"{'-' if None in side else f'{np.median(side):.4g}':>10}" for side in (ours, theirs))
        tail = "   {:.3f} ({:.3f} to {:.3f})".format(*ratio(ours, theirs)) if compared else ""
        lines.append(f"{label:32}{cells}{tail}")
    return "\n".join(lines)


def compare(plan: Plan, rounds: int, out: Path) -> list[dict[str, Any]]:
    """Run all turns after one small run of each side that does not count; the samples so far are written after each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ruler-bytecode-") as name:
        bytecode = Path(name)
        for side in ("ours", plan.peer):  # fills the page cache and the bytecode
            run_once(replace(plan, samples=1, max_epochs=1), side, 0, bytecode)
        for number, side in turns(rounds, plan.peer):
            load = os.getloadavg()[0]
            usage, result = run_once(plan, side, number, bytecode)
            rows.append({"side": side, "round": number, "order": len(rows), "load": load, **numbers(usage, result)})
            write(rows, plan, out)
            print(
                f"round {number} {side:9} {usage.wall_s:7.1f} s, {usage.cpu_s:7.1f} CPU s, {usage.peak_pss_mb:6.0f} MB,"
                f" {result.trials} trials, {result.epochs} epochs, best accuracy {result.best_accuracy:.4f}",
                flush=True,
            )
    return rows


def numbers(usage: Usage, result: Result) -> dict[str, Any]:
    """The columns that come from one run itself."""
    measured = {"wall_s": usage.wall_s, "cpu_s": usage.cpu_s, "peak_pss_mb": usage.peak_pss_mb, **asdict(result)}
    return {**measured, "s_per_epoch": usage.wall_s / result.epochs, "cpu_s_per_epoch": usage.cpu_s / result.epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--samples", type=int, default=16, help="trials of each run")
    parser.add_argument("--max-epochs", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=64, help="px")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--peer", choices=list(PEER_SCOPE), default="textbook")
    parser.add_argument("--out", type=Path, default=Path("samples.parquet"), help="Parquet file for the raw samples")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} exists. Choose another name; measurements are not overwritten.")
    if not all((args.data / part).is_dir() for part in ("train", "val")):
        parser.error(f"{args.data} must hold train and val.")
    if hasattr(os, "sched_setaffinity"):  # what is started inherits it: both sides get these cores and no others
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    plan = Plan(args.data.resolve(), args.peer, args.samples, args.max_epochs, args.image_size)
    print(summary(compare(plan, args.rounds, args.out), plan.peer))


if __name__ == "__main__":
    main()
