"""The faults of a soak: one function each, and one row of `CASES`."""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvtune.history import FAILED, History
from cvtune.study import read as read_study
from tests.invariants import check, half_written, rows
from tests.soak import nodes
from tests.soak.hurt import QUICK, WHOLE, Bench

FIFO = (*WHOLE, "budget.trials=6", "max_epochs=10")
ASHA = (
    *QUICK, "resources.max_concurrent=1", "max_epochs=3", "budget.trials=24", "noise_seeds=2", "confirm.top=1",
    "confirm.seeds=2",
)  # fmt: skip
LONG = (*WHOLE, "budget.trials=2", "max_epochs=60", "resources.retries=100")  # both run at once: none waits for another
DECIDED = ("trial", "step", "action", "reason", "donor", "donor_step", "values", "arrival")


@dataclass(frozen=True)
class Case:
    """One row of the published table. `run` returns what came of it in words, None if there was not enough time.

    `alone`: it starts a Ray of its own; the others share one.
    """

    fault: str
    how: str
    run: Callable[..., str | None]  # with a Bench; what it takes besides makes it shorter
    alone: bool = False


# --- processes


def driver_killed(bench: Bench, count: int = 20) -> str | None:
    rng = random.Random(len(bench.faults))
    while len(bench.faults) < count:
        if not bench.in_time:
            return None
        driver = bench.start(ASHA)
        bench.wait_for_reports(rng.randint(1, 3))
        patience = time.monotonic() + (2 if rng.random() < 0.5 else 0)
        while time.monotonic() < patience and not half_written(bench.study):
            pass
        time.sleep(0 if patience > time.monotonic() else 0.4 * rng.random())
        assert driver.poll() is None, "the study was over before it was hurt often enough"
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        bench.hurt()
        check(bench.study)
    bench.finish(ASHA)
    whole = bench.as_without(ASHA)
    assert rows(bench.study, "decisions", DECIDED) == rows(whole, "decisions", DECIDED) != []
    return "the same epochs and the same decisions as without"


def trial_killed(bench: Bench, count: int = 20) -> str | None:
    driver = bench.start(LONG)
    while len(bench.faults) < count:
        if not bench.in_time:
            return None
        bench.wait_for_reports(2)
        bench.kill(bench.running())
    bench.finish(LONG, driver)
    bench.as_without(LONG)
    return "the same epochs as without"


# --- storage


@contextlib.contextmanager
def small_disk(place: Path, mb: int) -> Iterator[Path]:
    """A file system of `mb` MB at `place`; yields a file that may be made to fill it. Needs root."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mb}m", "tmpfs", str(place)], check=True)
    try:
        yield place / "ballast"
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Take all that is left of a disk."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def study_disk_full(bench: Bench, count: int = 3) -> str | None:
    """The run may end, or wait; the same command goes on once there is room."""
    codes = []
    with small_disk(bench.study.parent, 200) as ballast:
        for _ in range(count):
            driver = bench.start(FIFO)
            bench.wait_for_reports(3)
            fill(ballast)
            bench.hurt()
            codes.append(bench.ended(driver, 60))
            check(bench.study)
            ballast.unlink()
            bench.faults[-1]["t"] = time.time()  # nothing can be reported before there is room
        bench.finish(FIFO)
        bench.as_without(FIFO)
        shutil.copytree(bench.study, bench.folder / "kept")
    shutil.copytree(bench.folder / "kept", bench.study)
    return f"the run ends with exit code {codes}; the same command goes on: the same epochs as without"


def cache_disk_full(bench: Bench) -> str | None:
    bench.cache = bench.folder / "cache"
    with small_disk(bench.cache, 8) as ballast:
        fill(ballast)
        bench.hurt()
        driver = bench.start(FIFO)
        bench.wait_for_reports(3)
        ballast.unlink()
        bench.finish(FIFO, driver)
    bench.as_without(FIFO)
    return "images are decoded at each access instead of once: the same epochs as without"


def cache_deleted(bench: Bench, count: int = 5, settings: Sequence[str] = LONG) -> str | None:
    bench.cache = bench.folder / "cache"
    driver = bench.start(settings)
    while len(bench.faults) < count:
        if not bench.in_time:
            return None
        bench.wait_for_reports(2)
        shutil.rmtree(bench.cache)
        bench.kill(bench.running()[-1:])  # its successor has nothing mapped yet
    bench.finish(settings, driver)
    bench.as_without(settings)
    return "images are decoded anew: the same epochs as without"


def slow_storage(bench: Bench, count: int = 3) -> str | None:
    layer = {"PYTHONPATH": str(Path(__file__).with_name("late")), "LATE_ROOT": str(bench.study.parent)}
    layer |= {"LATE_LOG": str(bench.folder / "late.log"), "LATE_S": "30"}  # of folders, NFS asks again after 30 to 60 s
    while len(bench.faults) < count:
        driver = bench.start(FIFO, **layer)
        bench.wait_for_reports(3)
        driver.send_signal(signal.SIGKILL if len(bench.faults) % 2 else signal.SIGTERM)
        code = bench.ended(driver)
        bench.hurt()
        check(bench.study, None if code < 0 else code)
    bench.finish(FIFO, **layer)
    bench.as_without(FIFO)
    answers = Counter((bench.folder / "late.log").read_text())
    assert answers["-"] + answers["="], "nothing was late"
    bench.cache = bench.folder / "cache"  # a new one: images that are decoded already are read without a lock
    refused = bench.start((*FIFO, "name=refused"), **{**layer, "LATE_ROOT": str(bench.root)})
    assert bench.ended(refused) == 2 and "cannot lock files" in bench.said()
    return (
        f"{answers['-']} names were not seen yet and {answers['=']} listings were old: the same epochs as without; a "
        "cache there is refused (exit code 2)"
    )


# --- what a trial's own code does


def reasons(history: History) -> Counter[str | None]:
    return Counter(record.reason for record in history.trials.values())


def failing(bench: Bench, setting: str, reason: str, *more: str) -> History:
    """Run a study of which some trials fail; those have `reason`, and every other has trained as without."""
    settings = (*WHOLE, "budget.trials=8", "max_epochs=3", setting, *more)
    bench.hurt()
    history = bench.finish(settings)
    assert set(reasons(history)) == {"completed", reason}, reasons(history)
    best = history.best(read_study(bench.study / "study.json"))
    assert best is not None and best[0].reason == "completed"
    return history


def objective_unwell(bench: Bench) -> str | None:
    settings = (
        *QUICK, "scheduler.name=pbt", "scheduler.interval_epochs=1", "scheduler.quantile=0.4", "noise_seeds=0",
        "confirm.top=0", "budget.trials=16", "max_epochs=6", "train.loop=python:faulty:unwell", "augment.strength=0",
        "regularize.strength=0", "tracking.strip=0",
    )  # fmt: skip
    bench.hurt()
    history = bench.finish(settings)
    ill = {record.trial for record in history.trials.values() if record.reason in FAILED}
    exploits = [exploit for record in history.trials.values() for exploit in record.exploits]
    taken = [history.trials[exploit.donor].epochs[exploit.donor_step - 1]["val_accuracy"] for exploit in exploits]
    best = history.best(read_study(bench.study / "study.json"))
    assert ill and taken and all(score is not None and math.isfinite(score) for score in taken), taken
    assert best is not None and best[0].trial not in ill
    earlier = [e["val_accuracy"] for record in history.trials.values() for e in record.epochs[:-1]]
    assert all(score is not None and math.isfinite(score) for score in earlier), "one went on after such a report"
    return (
        f"{len(ill)} of 16 trials end at the first such report ({dict(reasons(history))}); none is best, and each of "
        f"{len(taken)} takeovers is of a report with a number"
    )


def gpu_memory(bench: Bench) -> str | None:
    history = failing(bench, "loss.name=python:faulty:gpu_memory", "oom_gpu")
    return f"{reasons(history)['oom_gpu']} of 8 trials end as `oom_gpu` and are not retried; the others go on"


def host_memory(bench: Bench) -> str | None:
    history = failing(bench, "loss.name=python:faulty:host_memory", "oom_host")
    return f"{reasons(history)['oom_host']} of 8 trials end as `oom_host` and are not retried; the others go on"


def loader_hung(bench: Bench) -> str | None:
    more = ("resources.hang_s=5", "resources.cpu=2")
    history = failing(bench, "augment.policy=python:faulty:stuck", "hung", *more)
    ill = [record for record in history.trials.values() if record.reason == "hung"]
    assert all(record.attempt == 2 for record in ill)
    return f"{len(ill)} of 8 trials: ended after 5 s without progress, taken up once, then `hung`; the others go on"


@contextlib.contextmanager
def little_memory(gb: float) -> Iterator[Path]:
    """A control group (v1) that may use so much memory; yields its folder. Needs root."""
    place = Path("/sys/fs/cgroup/memory/cvtune-soak")
    place.mkdir(exist_ok=True)
    (place / "memory.limit_in_bytes").write_text(str(int(gb * 2**30)))
    try:
        yield place
    finally:
        until = time.monotonic() + 30
        while time.monotonic() < until and (place / "cgroup.procs").read_text().split():
            time.sleep(0.2)
        place.rmdir()


def out_of_memory(bench: Bench) -> str | None:
    """The system's own killer: it takes the largest process of the group."""
    settings = (*WHOLE, "budget.trials=4", "max_epochs=3", "loss.name=python:faulty:eats_memory", "resources.retries=1")
    with little_memory(4) as group:
        bench.hurt()
        driver = bench.start(settings)
        (group / "cgroup.procs").write_text(str(driver.pid))
        history = bench.finish(settings, driver)
        kills = (group / "memory.oom_control").read_text().split()[-1]
    ill = [record for record in history.trials.values() if record.reason != "completed"]
    assert ill and {record.reason for record in ill} <= {"oom_host", "infra_lost"}
    said = f"{ill[0].message[:70]!r}..."
    return f"{len(ill)} of 4 trials end as {dict(reasons(history))} after {kills} kills; message: {said}"


def twentieth(bench: Bench, trials: int = 2000) -> str | None:
    settings = (
        *WHOLE, f"budget.trials={trials}", "max_epochs=2", "train.loop=python:faulty:twentieth", "augment.strength=0",
        "regularize.strength=0", "tracking.strip=0",
    )  # fmt: skip
    driver = bench.start(settings)
    while bench.in_time and driver.poll() is None:
        time.sleep(0.5)
    if driver.poll() is None:
        return None
    history = bench.finish(settings, driver)
    found = reasons(history)
    assert set(found) == {"completed", "code_error"} and found["code_error"] > 0.03 * trials
    assert found.total() == trials
    return f"{found['code_error']} of {trials:,} trials end as `code_error`, all others as `completed`"


CASES: dict[str, Case] = {
    "driver_killed": Case(
        "driver killed", "SIGKILL at random moments, half of them while a file is written", driver_killed
    ),
    "trial_killed": Case(
        "a trial's process killed", "SIGKILL to all that train, after two reports, again and again", trial_killed
    ),
    "node_lost": Case(
        "a node frozen, cut off or killed",
        "in turn: SIGSTOP to all of a host, SIGCONT once its trial runs elsewhere; its cable down, up once it runs "
        "elsewhere; SIGKILL to all of it; then Ray is started there again",
        nodes.node_lost,
        alone=True,
    ),
    "head_killed": Case(
        "the head killed, and the driver on it", "every process of the head's host", nodes.head_killed, alone=True
    ),
    "other_ray": Case("a node of another Ray joins", "Ray 2.54 there, while trials run", nodes.other_ray, alone=True),
    "other_python": Case(
        "a node of another Python joins", "Python 3.12 there, of the same Ray", nodes.other_python, alone=True
    ),
    "study_disk_full": Case(
        "disk of the study full, later freed", "a tmpfs of 200 MB, filled while trials run", study_disk_full
    ),
    "cache_disk_full": Case(
        "disk of the cache full, later freed", "a tmpfs of 8 MB, filled before the start", cache_disk_full
    ),
    "cache_deleted": Case(
        "cache deleted in a run", "`rm -r`, and a trial's process killed so that it has to open it anew", cache_deleted
    ),
    "slow_storage": Case(
        "storage that shows names late and refuses locks",
        "a layer over Python's file functions in every process: what was looked up is answered from memory for 30 s, "
        "as NFS clients do; `flock` fails; meanwhile SIGTERM, SIGKILL, SIGTERM",
        slow_storage,
        alone=True,
    ),
    "objective_unwell": Case(
        "objective NaN, infinite or missing",
        "a loop of the user's own, under population-based training",
        objective_unwell,
    ),
    "gpu_memory": Case(
        "GPU out of memory (simulated)", "`torch.OutOfMemoryError` from user code, at any batch", gpu_memory
    ),
    "host_memory": Case("host out of memory: refused", "a tensor of 70 TB in user code", host_memory),
    "out_of_memory": Case(
        "host out of memory: killed", "a control group of 4 GB, which a trial outgrows", out_of_memory, alone=True
    ),
    "loader_hung": Case("a loader that hangs", "a transform in a loader's process never returns", loader_hung),
    "twentieth": Case(
        "one of twenty trials fails", "an exception in user code; 2,000 trials that train nothing", twentieth
    ),
}
