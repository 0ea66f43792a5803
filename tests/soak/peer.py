"""The same faults to a search by plain Ray Tune, and what `Tuner.restore` makes of them.

    uv run python -m tests.soak.peer --list
    uv run python -m tests.soak.peer driver_killed --folder /tmp/peer
    uv run python -m tests.soak.peer --table --folder /tmp/peer

The search is that of `peer_study.py`: a script as Ray Tune's user guide has it. Faults come by the rule of the case of
`cases.py` that has the same name: so many new epochs after the last one, the driver in half of the cases at a write.
Every case is compared with the same search left alone. Epochs are counted where they are trained, by trial and number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtune.event import Event
from tests.invariants import MARK, check, rows
from tests.soak.cases import DECIDED
from tests.soak.hurt import QUICK, Bench
from tests.soak.nodes import HOSTS, NAMES, WAYS, cluster, one_node
from tests.soak.peer_study import SHAPES

PBT = (
    *QUICK, "scheduler.name=pbt", "scheduler.interval_epochs=1", "budget.trials=4", "max_epochs=6", "noise_seeds=0",
    "confirm.top=0", "resources.max_concurrent=1",
)  # fmt: skip
PORT = 6398  # not the soak's
HEAD = "| fault | search | times | epochs trained again | reports lost | reports twice | trials lost | as without |"


class PeerBench(Bench):
    """Runs `peer_study.py` instead of `cvtune run`: the same faults, other files to look at."""

    def __init__(self, root: Path, name: str, shape: str, most_s: float, ray: Mapping[str, str], **told: str) -> None:
        """`shape`: which search of `peer_study.SHAPES`. `told`: what its environment says."""
        super().__init__(root, name, most_s, ray)
        self.shape, self.told, self.study = shape, told, self.folder / shape
        self.mark = {MARK: f"peer-{root}-{name}"}

    def command(self, settings: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "tests.soak.peer_study", self.shape, str(self.folder)]

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(PYTHONPATH=str(Path(__file__).resolve().parents[2]), **self.told, **more)

    def lines(self, kind: str) -> list[Event]:
        """`began` or `epoch` of `trained.jsonl`."""
        path = self.folder / "trained.jsonl"
        every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [{**line, "trial": str(line["number"])} for line in every if kind in line]

    def reports_after(self, t: float, trial: str | None = None) -> list[Event]:
        return [e for e in self.lines("epoch") if e["t"] > t and trial in (None, e["trial"])]

    def elsewhere(self, victim: Event) -> bool:
        """Whether another process has trained an epoch of a trial since its last fault."""
        since = self.reports_after(self.faults[-1]["t"], victim["trial"])
        return any(line["pid"] != victim["pid"] for line in since)

    def running(self) -> list[Event]:
        over = {e["trial"] for e in self.lines("epoch") if e["epoch"] == SHAPES[self.shape][1]}
        latest = {e["trial"]: e for e in self.lines("began") if e["trial"] not in over}
        return sorted(latest.values(), key=lambda line: float(line["t"]))

    def reporting(self) -> Event | None:
        """A running trial that has trained an epoch where it runs now."""
        return next((e for e in self.running() if self.reports_after(e["t"], e["trial"])), None)

    @property
    def result(self) -> list[dict[str, Any]]:
        """Every trial at the end of the search."""
        found: list[dict[str, Any]] = json.loads((self.folder / "result.json").read_text())
        return found

    def written_since(self, t: float) -> bool:
        """Whether the driver has written some file of the search since then."""
        for folder, _, names in os.walk(self.study):
            for name in names:
                try:
                    if (Path(folder) / name).stat().st_mtime > t:
                        return True
                except FileNotFoundError:
                    continue
        return False


def counted(bench: PeerBench, whole: PeerBench) -> dict[str, Any]:
    """What became of a search, beside the one that nothing was done to."""
    trials, most, _ = SHAPES[bench.shape]
    trained = Counter((line["number"], line["epoch"]) for line in bench.lines("epoch"))
    told = {trial["number"]: trial["epochs"] for trial in bench.result}
    lost = sum(len(set(range(1, max(epochs, default=0) + 1)) - set(epochs)) for epochs in told.values())
    failed = [trial for trial in bench.result if trial["error"]]
    alone = {trial["number"]: trial["epochs"] for trial in whole.result}
    ends = {number: max(epochs, default=0) for number, epochs in alone.items()}
    last = {number: max(epochs, default=0) for number, epochs in told.items()}
    numbers = {tuple(line[key] for key in ("number", "epoch", "score", "lr")) for line in whole.lines("epoch")}
    own = {tuple(line[key] for key in ("number", "epoch", "score", "lr")) for line in bench.lines("epoch")}
    return {
        "times": len(bench.faults),
        "again": sum(trained.values()) - len(trained),
        "lost": lost,
        "twice": sum(len(epochs) - len(set(epochs)) for epochs in told.values()),
        "trials_lost": trials - len(bench.result) + len(failed),  # a population has several of one number
        "errors": sorted({str(trial["error"]) for trial in failed}),
        "other_ends": sum(last.get(number) != end for number, end in ends.items()),
        "other_epochs": len(own ^ numbers),
        "epochs": sum(trained.values()),
        "alone": len(whole.lines("epoch")),
        "of": (trials, most),
        "shape": bench.shape,
    }


def left_alone(bench: PeerBench) -> PeerBench:
    """The same search, nothing done to it; run once."""
    told = {name: value for name, value in bench.told.items() if name.startswith("PEER")}
    name = "-".join(["whole", bench.shape, *(f"{name}-{value}" for name, value in sorted(told.items()))])
    whole = PeerBench(bench.root, name, bench.shape, 0, bench.ray, **told)
    if not (whole.folder / "result.json").exists():
        try:
            code = whole.ended(whole.start(()))
            assert code == 0, whole.said()[-1500:]
        finally:
            whole.end()
    return whole


def kill_drivers(bench: PeerBench, count: int, after: tuple[int, int]) -> bool:
    """SIGKILL as `cases.driver_killed` has it; whether it was done as often as that."""
    rng = random.Random(len(bench.faults))
    while len(bench.faults) < count and not (bench.folder / "result.json").exists():
        if not bench.in_time:
            return False
        driver = bench.start(())
        try:
            bench.wait_for_reports(rng.randint(*after))
        except AssertionError:
            if driver.poll() == 0:  # it takes itself for complete, whether it is or not
                return True
            raise
        if rng.random() < 0.5:
            now, patience = time.time(), time.monotonic() + 2
            while time.monotonic() < patience and not bench.written_since(now):
                pass
        else:
            time.sleep(0.4 * rng.random())
        if driver.poll() is not None:
            return True  # it was over before it was hurt often enough
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        bench.hurt()
    return True


def interrupt(bench: PeerBench) -> bool:
    """SIGINT once, half through: Ray Tune then writes its state and ends in good order."""
    driver = bench.start(())
    bench.wait_for_reports(SHAPES[bench.shape][0])
    driver.send_signal(signal.SIGINT)
    driver.wait(120)
    bench.hurt()
    (bench.folder / "result.json").unlink(missing_ok=True)
    return True


def ended(bench: PeerBench) -> dict[str, Any]:
    """Run the search to its end, unless it is over; what became of it."""
    if not (bench.folder / "result.json").exists():
        code = bench.ended(bench.start(()))
        assert code == 0, bench.said()[-1500:]
    return counted(bench, left_alone(bench) if bench.faults else bench)


@dataclass(frozen=True)
class Case:
    """One row. `shape`: which search; `told`: what its environment says."""

    fault: str
    search: str
    shape: str
    told: Mapping[str, str]
    hurt: Callable[[PeerBench], bool]


def trial_killed(bench: PeerBench) -> bool:
    driver = bench.start(())
    while len(bench.faults) < 20 and driver.poll() is None:
        if not bench.in_time:
            return False
        bench.wait_for_reports(2)
        bench.kill(bench.running())
    assert bench.ended(driver) == 0, bench.said()[-1500:]
    return True


def trial_killed_once(bench: PeerBench) -> bool:
    """By default a trial that loses its process is not taken up again."""
    driver = bench.start(())
    bench.wait_for_reports(4)
    victim = bench.running()[-1]
    os.kill(victim["pid"], signal.SIGKILL)
    bench.hurt(victim["trial"])
    assert bench.ended(driver) == 0, bench.said()[-1500:]
    return True


def node_lost(bench: PeerBench) -> bool:
    """As `nodes.node_lost` has it: a node is frozen, one cut off, one killed."""
    hosts = {HOSTS.address(name): name for name in NAMES}
    with cluster(bench.folder, bench.environment()) as ray:
        ray.up("h1")
        driver = bench.watched(ray.drive(bench.command(())))
        for hurt, undo in WAYS:
            bench.wait_for_reports(3)
            victim = bench.wait(bench.reporting)
            hurt(hosts[victim["ip"]])
            bench.hurt(victim["trial"])
            bench.wait(lambda: bench.elsewhere(victim))  # noqa: B023
            undo(hosts[victim["ip"]])
            bench.wait_for_reports(3)
            ray.restart(hosts[victim["ip"]])
        assert bench.ended(driver) == 0, bench.said()[-1500:]
    return True


CASES = {
    "driver_killed": Case(
        "driver killed",
        "ASHA, by default a snapshot each 10 s",
        "asha",
        {},
        lambda bench: kill_drivers(bench, 20, (1, 3)),
    ),
    "driver_killed_0": Case(
        "driver killed",
        "ASHA, `TUNE_GLOBAL_CHECKPOINT_S=0`",
        "asha",
        {"TUNE_GLOBAL_CHECKPOINT_S": "0"},
        lambda bench: kill_drivers(bench, 20, (1, 3)),
    ),
    "driver_killed_slow": Case(
        "driver killed after 10 to 20 epochs",
        "ASHA, epochs of 1 s, by default a snapshot each 10 s",
        "asha",
        {"PEER_PACE": "1"},
        lambda bench: kill_drivers(bench, 5, (10, 20)),
    ),
    "driver_interrupted": Case("driver ended by SIGINT", "ASHA, by default", "asha", {}, interrupt),
    "trial_killed": Case(
        "a trial's process killed", "FIFO, `max_failures=100`", "fifo", {"PEER_RETRIES": "100"}, trial_killed
    ),
    "trial_killed_once": Case("a trial's process killed", "FIFO, by default", "fifo", {}, trial_killed_once),
    "node_lost": Case(
        "a node frozen, one cut off, one killed",
        "FIFO, `max_failures=100`, three nodes",
        "nodes",
        {"PEER_RETRIES": "100"},
        node_lost,
    ),
    "pbt_one": Case("none", "PBT, `num_to_keep=1`", "pbt", {"PEER_KEEP": "1"}, lambda bench: True),
    "pbt_killed": Case(
        "driver killed",
        "PBT, all checkpoints kept, `TUNE_GLOBAL_CHECKPOINT_S=0`",
        "pbt",
        {"TUNE_GLOBAL_CHECKPOINT_S": "0"},
        lambda bench: kill_drivers(bench, 5, (3, 8)),
    ),
}


def ours(root: Path, ray: Mapping[str, str]) -> dict[str, Any]:
    """Population-based training by cvtune, the driver killed five times: beside `pbt_killed`."""
    bench, rng = Bench(root, "cvtune-pbt", 1e9, ray), random.Random(0)
    try:
        while len(bench.faults) < 5:
            driver = bench.start(PBT)
            bench.wait_for_reports(rng.randint(1, 3))
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            bench.hurt()
            check(bench.study)
        history = bench.finish(PBT)
        whole = bench.as_without(PBT)
        assert rows(bench.study, "decisions", DECIDED) == rows(whole, "decisions", DECIDED) != []
    finally:
        bench.end()
    exploits = sum(len(record.exploits) for record in history.trials.values())
    return {"fault": "driver killed", "exploits": exploits, "trials": len(history.trials), **bench.row()}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    again = f"{row['again']} of {row['epochs']}"
    cells = [again, row["lost"], row["twice"], row["trials_lost"], "yes"]
    if row["other_ends"] or row["other_epochs"]:
        cells[-1] = f"no: {row['other_ends']} of {row['of'][0]} trials end elsewhere"
    if row["shape"] == "pbt":  # a trial that took another's weights has that one's epochs; the order of reports decides
        cells = ["", "", "", row["trials_lost"], ""]
    return "| " + " | ".join(str(cell) for cell in (row["fault"], row["search"], row["times"], *cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which; none: all, and cvtune's PBT")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cvtune-peer"), help="where all is kept")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further fault after so long, per case")
    parser.add_argument("--table", action="store_true", help="print all rows, and run nothing")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    given = parser.parse_args()
    folder = given.folder.absolute()
    done = {name: folder / f"{name}.json" for name in (*CASES, "cvtune-pbt")}
    if given.list:
        print("\n".join(done))
        return
    if given.table:
        read = [json.loads(path.read_text()) for path in done.values() if path.exists()]
        print("\n".join([HEAD, "|---|---|---|---|---|---|---|---|", *(line(row) for row in read if "search" in row)]))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))  # so that what was started is ended
    with one_node(folder, PORT) as ray:
        for name in given.cases or done:
            if done[name].exists():
                continue
            if name not in CASES:
                row = ours(folder, ray)
            else:
                case = CASES[name]
                bench = PeerBench(folder, name, case.shape, given.seconds, ray, **case.told)
                try:
                    case.hurt(bench)
                    row = {"fault": case.fault, "search": case.search, **ended(bench)}
                finally:
                    bench.end()
            done[name].write_text(json.dumps(row, indent=1))
            print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
