"""What one more trial at once takes: peak memory (PSS) of the process tree with two trials at once, less with one.

    uv run python tests/bench/memory.py DATA_DIR --rounds 3

The ruler's sweep, cut to two trials of one epoch, by ours and by the textbook's script; DATA_DIR as there. `imports`:
private memory of a process that has imported what a trial of ours needs, and done nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from meter import measure
from ruler import OURS, Plan, copy_peers, environment, our_command, peer_command

SIDES = (OURS, "textbook")
TRIALS = 2
IMPORTED = """
import psutil, torch
from ray import tune
from cvtune import actor, augment, checkpoint, train
told = psutil.Process().memory_full_info()
print(told.uss / 2**20)
"""


def peak(plan: Plan, side: str, at_once: int, bytecode: Path) -> float:
    """Peak memory in MB of one run with so many trials at once."""
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        scratch = Path(name)
        copy_peers(scratch)
        if side == OURS:
            command = [*our_command(plan, 0, scratch), "--set", f"resources.max_concurrent={at_once}"]
        else:
            command = [*peer_command(plan, side, 0, scratch), "--cpus", str(at_once)]
        usage = measure(command, scratch / "log.txt", environment(bytecode))
        if usage.returncode:
            raise RuntimeError(f"{side} ended with {usage.returncode}:\n{(scratch / 'log.txt').read_text()[-4000:]}")
        return usage.peak_pss_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    plan = Plan(given.data.resolve(), ("textbook",), TRIALS, 1, 64)
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="memory-bytecode-") as name:
        for number in range(given.rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                for at_once in (1, 2):
                    found[side, at_once].append(peak(plan, side, at_once, Path(name)))
                print(f"round {number} {side}: {found[side, 1][-1]:.0f} and {found[side, 2][-1]:.0f} MB", flush=True)
        command = [sys.executable, "-c", IMPORTED]
        imports = subprocess.run(command, env=environment(Path(name)), capture_output=True, text=True, check=True)
    for side in SIDES:
        more = [two - one for one, two in zip(found[side, 1], found[side, 2], strict=True)]
        print(
            f"{side}: {statistics.median(found[side, 2]):.0f} MB, {statistics.median(more):.0f} MB more than with one"
        )
    print(f"imports: {float(imports.stdout.split()[-1]):.0f} MB private")


if __name__ == "__main__":
    main()
