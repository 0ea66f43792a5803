"""Real studies under faults, again and again: `uv run python -m tests.soak.run [CASE ...]`.

    uv run python -m tests.soak.run --list
    uv run python -m tests.soak.run driver_killed --folder /tmp/soak --seconds 200
    uv run python -m tests.soak.run --table --folder /tmp/soak

Each case runs a small study (scikit-learn's digits at 16 px, real training, or trials that train nothing) while a
fault comes often, asserts what `tests/invariants.py` asserts, compares every report with those of the study that
nothing was done to, and writes a row to `rows/` of the folder. A case that did not get through in its time goes on when
it is called again, and one that did is left out. Some need root (small disks, control groups, hosts of their own); none
needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.soak.cases import CASES
from tests.soak.hurt import Bench
from tests.soak.nodes import PORT, one_node

HEAD = "| fault | how injected | how often | what came of it | trained again | until the next report |"


def run(name: str, folder: Path, seconds: float, ray: Mapping[str, str] | None = None, **shorter: Any) -> None:
    """Run one case, and write its row once it is through. `shorter`: what its function takes, to do less."""
    bench = Bench(folder, name, seconds, ray)
    case = CASES[name]
    try:
        said = case.run(bench, **shorter)
    finally:
        bench.end()
    if said is None:
        print(f"{name}: {len(bench.faults)} faults so far; call it again to go on")
        return
    row = {"fault": case.fault, "how": case.how, "said": said, **bench.row()}
    (folder / "rows").mkdir(exist_ok=True)
    (folder / "rows" / f"{name}.json").write_text(json.dumps(row, indent=1))
    print(line(row))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    times = row["recovered"]
    waited = f"{times['median']:.0f} s, at most {times['most']:.0f} s" if times else "-"
    return (
        f"| {row['fault']} | {row['how']} | {row['times'] or '-'} | {row['said']} | {row['again']} epochs | {waited} |"
    )


def table(folder: Path) -> str:
    """Every fault, those that were not tried yet as well."""
    lines = []
    for name, case in CASES.items():
        path = folder / "rows" / f"{name}.json"
        lines.append(
            line(json.loads(path.read_text())) if path.exists() else f"| {case.fault} | {case.how} | not run | | | |"
        )
    return "\n".join([HEAD, "|---|---|---|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which; none: all")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cvtune-soak"), help="where studies and rows are kept")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further fault after so long")
    parser.add_argument("--port", type=int, default=PORT, help="of the Ray that most cases share")
    parser.add_argument("--table", action="store_true", help="print all rows, and run nothing")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    given = parser.parse_args()
    if unknown := set(given.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}. There are: {', '.join(CASES)}.")
    if given.table or given.list:
        print(table(given.folder) if given.table else "\n".join(CASES))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))  # so that what was started is ended
    folder, until = given.folder.absolute(), time.monotonic() + given.seconds
    asked = [name for name in given.cases or CASES if not (folder / "rows" / f"{name}.json").exists()]
    shared = [name for name in asked if not CASES[name].alone]
    with one_node(folder, given.port) if shared else nullcontext() as ray:
        for name in shared:
            run(name, folder, until - time.monotonic(), ray)
    for name in asked:
        if name not in shared:
            run(name, folder, until - time.monotonic())


if __name__ == "__main__":
    main()
