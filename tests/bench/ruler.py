"""Ours against peers: the same search by all in turns, with time, CPU time and memory of the whole process tree.

    uv run python tests/bench/ruler.py DATA_DIR --samples 16 --max-epochs 9 --image-size 64 --rounds 3 --peer textbook

DATA_DIR holds train/<class>/* and val/<class>/*. Every run begins with empty folders; all sides get the same two
CPUs, no GPU and, per round, the same seed. `--peer` may come several times. The same command goes on where it was
broken off, and `--most N` ends it after N runs. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
import stamps
from meter import Usage, measure

HERE = Path(__file__).resolve().parent
CPUS = 2
PACKAGES = ("cvtune", "ray", "torch", "albumentations", "numpy", "opencv-python-headless")
OURS = "ours"
SCRIPTS = {"textbook": "textbook_ray", "tuned": "tuned_ray", "optuna": "optuna_pool", "pure": "pure_loop"}
STAMPED = {  # in a copy of the peers that are kept as they stand: the line before which, and the line that goes there
    "textbook_ray": (
        ("    torch.manual_seed(", "    import stamps; stamps.watch()"),
        ("        tune.report(", "        stamps.reported()"),
    ),
    "tuned_ray": (
        ("            torch.manual_seed(", "            import stamps; stamps.watch()"),
        ('            return {"val_accuracy"', "            import stamps; stamps.reported()"),
    ),
}
NORMAL_ENDS = {"completed", "stopped_scheduler", "diverged"}


@dataclass(frozen=True)
class Plan:
    """What both sides are asked to do."""

    data: Path
    peers: tuple[str, ...]
    samples: int
    max_epochs: int
    image_size: int


@dataclass(frozen=True)
class Result:
    """What one side says that it did."""

    trials: int
    epochs: int
    best_accuracy: float


COLUMNS: dict[str, tuple[pa.DataType, str, str]] = {  # name -> type, unit, description
    "side": (pa.string(), "", "ours, or the peer's name."),
    "round": (pa.int64(), "", "Round, from 0; also the seed of all sides."),
    "order": (pa.int64(), "", "Position among all runs, from 0."),
    "load": (pa.float64(), "", "Load average of the machine over the minute before the run."),
    "wall_s": (pa.float64(), "s", "Wall clock from the start of the command to its end."),
    "cpu_s": (pa.float64(), "s", "CPU time of the whole process tree."),
    "peak_pss_mb": (pa.float64(), "MB", "Largest sum of the proportional set sizes of the process tree."),
    "trials": (pa.int64(), "trials", "Trials started."),
    "epochs": (pa.int64(), "epochs", "Epochs trained by all trials."),
    "best_accuracy": (pa.float64(), "", "Validation accuracy of the best epoch of all trials."),
    "start_s": (pa.float64(), "s", "From the start of the command to the first optimizer step of any trial."),
    "turnaround_s": (pa.float64(), "s", "Median from a trial's last report to the next one's first optimizer step."),
    "s_per_epoch": (pa.float64(), "s", "wall_s / epochs."),
    "s_per_epoch_started": (pa.float64(), "s", "(wall_s - start_s) / epochs."),
    "cpu_s_per_epoch": (pa.float64(), "s", "cpu_s / epochs."),
}
SHOWN = {  # column -> label and whether the ratio is shown
    "wall_s": ("wall clock, s", False),
    "epochs": ("epochs trained", False),
    "s_per_epoch_started": ("time per epoch after the start, s", True),
    "s_per_epoch": ("time per epoch, start included, s", True),
    "cpu_s_per_epoch": ("CPU time per epoch, s", True),
    "start_s": ("start to first optimizer step, s", True),
    "turnaround_s": ("one trial to the next, s", True),
    "peak_pss_mb": ("peak memory (PSS), MB", True),
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
        "noise_seeds": 0,  # a search and nothing else, as the peers
        "confirm.top": 0,
        "tracking.mode": "offline",
    }
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    folders = ["--storage", str(scratch / "studies"), "--cache", str(scratch / "cache")]
    return [sys.executable, "-m", "cvtune.cli", "run", str(HERE / "peer_study.py"), *folders, *settings]


def peer_command(plan: Plan, peer: str, seed: int, scratch: Path) -> list[str]:
    """The command of a peer; all that it keeps lies in `scratch`, and `peer_script` put it there."""
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
    return [sys.executable, str(scratch / "peers" / f"{SCRIPTS[peer]}.py"), str(plan.data), *settings]


def copy_peers(scratch: Path) -> None:
    """The peers in a folder of their own; those that are kept as they stand get the lines that stamp."""
    shutil.copytree(HERE / "peers", scratch / "peers", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for name, insertions in STAMPED.items():
        path = scratch / "peers" / f"{name}.py"
        text = path.read_text()
        for before, line in insertions:
            assert text.count(f"\n{before}") == 1, f"{name} has no single line that begins {before!r}"
            text = text.replace(f"\n{before}", f"\n{line}\n{before}")
        path.write_text(text)


def our_result(scratch: Path) -> Result:
    """What our tables say."""
    folder = scratch / "studies" / "peer_study"
    trials = pq.read_table(folder / "tables" / "trials.parquet").to_pydict()
    rows, counted = pq.read_metadata(folder / "tables" / "epochs.parquet").num_rows, sum(trials["epochs"])
    assert rows == counted, f"epochs.parquet has {rows} rows, trials.parquet counts {counted}"
    strange = set(trials["reason"]) - NORMAL_ENDS
    assert not strange, f"trials of ours ended as {strange}"
    return Result(len(trials["trial"]), rows, max(trials["best"]))


def our_ends(scratch: Path) -> list[float]:
    """When the driver decided on each trial's last report, seconds since 1970; of peers, reports are stamped."""
    epochs = pq.read_table(scratch / "studies" / "peer_study" / "tables" / "epochs.parquet", columns=["trial", "time"])
    last = epochs.group_by("trial").aggregate([("time", "max")])
    return [time.timestamp() for time in last["time_max"].to_pylist()]


def peer_result(scratch: Path) -> Result:
    """What the peer's result file says."""
    told = json.loads((scratch / "result.json").read_text())
    assert told["errors"] == 0, f"{told['errors']} trials of the peer failed"
    return Result(told["trials"], told["epochs"], told["best_val_accuracy"])


def environment(bytecode: Path, stamped: Path | None = None) -> dict[str, str]:
    """The same for all sides: nobody's settings, no GPU, no network, workers started by plain Python.

    Args:
        bytecode: folder where compiled Python is kept from run to run, as every installation has it.
        stamped: folder for `stamps`; None: nothing is stamped.
    """
    dropped = ("RAY_", "TUNE_", "CVTUNE_", "OMP_", "PYTHON")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(dropped)},
        "PYTHONPYCACHEPREFIX": str(bytecode),
        "CUDA_VISIBLE_DEVICES": "",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would start every worker of the peer through uv
        "RAY_USAGE_STATS_ENABLED": "0",
        "CVTUNE_REPORT": "0",  # the peers write none
        "PYTHONPATH": str(HERE),  # where the peers' copies find `stamps`
        **({stamps.FOLDER: str(stamped)} if stamped else {}),
    }


def run_once(plan: Plan, side: str, seed: int, bytecode: Path) -> dict[str, Any]:
    """One run of one side in folders of its own: the columns that come from the run itself.

    Raises:
        RuntimeError: the command failed; the message ends with the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="ruler-") as name:
        scratch = Path(name)
        (scratch / "stamps").mkdir()
        copy_peers(scratch)
        command = our_command(plan, seed, scratch) if side == OURS else peer_command(plan, side, seed, scratch)
        usage = measure(command, scratch / "log.txt", environment(bytecode, scratch / "stamps"))
        if usage.returncode:
            raise RuntimeError(f"{side} ended with {usage.returncode}:\n{(scratch / 'log.txt').read_text()[-4000:]}")
        result = our_result(scratch) if side == OURS else peer_result(scratch)
        return numbers(usage, result, stamps.read(scratch / "stamps"), our_ends(scratch) if side == OURS else ())


def turns(rounds: int, peers: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Rounds and sides in the order A B B A A B ..., so that a drift of the machine meets all alike."""
    sides = (OURS, *peers)
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            yield number, side


def ratio(ours: Sequence[float], peer: Sequence[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Ratio of medians ours / peer with its 95 % bootstrap interval (percentiles, sides drawn independently)."""
    rng = np.random.default_rng(0)
    above, below = (np.median(rng.choice(side, (draws, len(side))), axis=1) for side in (ours, peer))
    low, high = np.quantile(above / below, (0.025, 0.975))
    return float(np.median(ours) / np.median(peer)), float(low), float(high)


def about(plan: Plan) -> dict[str, Any]:
    """What the samples of one file have in common."""
    versions = {name: version(name) for name in PACKAGES}
    return {**asdict(plan), "peers": list(plan.peers), "data": plan.data.name, "cpus": CPUS, "versions": versions}


def write(rows: list[dict[str, Any]], plan: Plan, path: Path) -> None:
    """The raw samples as Parquet, columns with unit and description, versions beside them."""
    fields = [pa.field(n, kind, metadata={"unit": unit, "description": d}) for n, (kind, unit, d) in COLUMNS.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(fields, metadata={"ruler": json.dumps(about(plan))})
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def earlier(plan: Plan, path: Path) -> list[dict[str, Any]]:
    """The samples that an earlier run of the same command left.

    Raises:
        SystemExit: the file holds samples of another comparison.
    """
    if not path.exists():
        return []
    table = pq.read_table(path)
    held, wanted = json.loads(table.schema.metadata[b"ruler"]), about(plan)
    differing = sorted(key for key in wanted if held.get(key) != wanted[key])
    if differing:
        sys.exit(f"--out {path} holds samples that differ in {', '.join(differing)}. Choose another name.")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def summary(rows: list[dict[str, Any]], peer: str) -> str:
    """Medians of ours and of a peer, and ours / peer with its interval."""
    lines = [f"{'median of runs':34}{'ours':>10}{peer:>10}   ours / {peer}, 95 % interval"]
    for column, (label, compared) in SHOWN.items():
        ours, theirs = (
            [row[column] for row in rows if row["side"] == side and row[column] is not None] for side in (OURS, peer)
        )
        cells = "".join(f"{f'{np.median(side):.4g}' if side else '-':>10}" for side in (ours, theirs))
        tail = "   {:.3f} ({:.3f} to {:.3f})".format(*ratio(ours, theirs)) if compared and ours and theirs else ""
        lines.append(f"{label:34}{cells}{tail}")
    return "\n".join(lines)


def compare(plan: Plan, rounds: int, out: Path, most: int | None) -> list[dict[str, Any]]:
    """Run the turns that are missing, `most` at most; the samples so far are written after each.

    Each side makes one small run before that does not count: it fills the page cache and the bytecode.
    """
    rows = earlier(plan, out)
    missing = list(turns(rounds, plan.peers))[len(rows) :][:most]
    bytecode = out.with_suffix(".bytecode")
    for side in dict.fromkeys(side for _, side in missing):
        if not (bytecode / f"warm-{side}").exists():
            run_once(replace(plan, samples=1, max_epochs=1), side, 0, bytecode)
            (bytecode / f"warm-{side}").touch()
    for number, side in missing:
        load = os.getloadavg()[0]
        row = {
            "side": side,
            "round": number,
            "order": len(rows),
            "load": load,
            **run_once(plan, side, number, bytecode),
        }
        rows.append(row)
        write(rows, plan, out)
        print(
            f"round {number} {side:9} {row['wall_s']:7.1f} s, {row['cpu_s']:7.1f} CPU s, {row['peak_pss_mb']:6.0f} MB,"
            f" {row['trials']} trials, {row['epochs']} epochs, start {row['start_s']:.1f} s, then"
            f" {row['s_per_epoch_started']:.3f} s per epoch, best accuracy {row['best_accuracy']:.4f}",
            flush=True,
        )
    return rows


def numbers(usage: Usage, result: Result, trained: list[stamps.Trained], ends: Sequence[float] = ()) -> dict[str, Any]:
    """The columns that come from one run itself."""
    start, between = trained[0].first - usage.started, stamps.turnarounds(trained, CPUS, ends)
    return {
        "wall_s": usage.wall_s,
        "cpu_s": usage.cpu_s,
        "peak_pss_mb": usage.peak_pss_mb,
        **asdict(result),
        "start_s": start,
        "turnaround_s": float(np.median(between)) if between else None,
        "s_per_epoch": usage.wall_s / result.epochs,
        "s_per_epoch_started": (usage.wall_s - start) / result.epochs,
        "cpu_s_per_epoch": usage.cpu_s / result.epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--samples", type=int, default=16, help="trials of each run")
    parser.add_argument("--max-epochs", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=64, help="px")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--peer", choices=list(SCRIPTS), action="append", help="may come several times")
    parser.add_argument("--most", type=int, help="runs at most, of those that are missing")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samples.parquet"),
        help="Parquet file for the raw samples; one that exists is continued",
    )
    args = parser.parse_args()
    if not all((args.data / part).is_dir() for part in ("train", "val")):
        parser.error(f"{args.data} must hold train and val.")
    if hasattr(os, "sched_setaffinity"):  # what is started inherits it: both sides get these cores and no others
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    peers = tuple(args.peer or ["textbook"])
    plan = Plan(args.data.resolve(), peers, args.samples, args.max_epochs, args.image_size)
    rows = compare(plan, args.rounds, args.out, args.most)
    for peer in peers:
        print(summary(rows, peer), end="\n\n")


if __name__ == "__main__":
    main()
