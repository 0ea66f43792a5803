"""A Ray cluster of three hosts on this machine, and the faults of its nodes. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from cvtune.event import Event
from tests.invariants import check
from tests.rig.hosts import Hosts
from tests.soak.hurt import WHOLE, Bench

NAMES = ("h1", "h2", "h3")
HOSTS = Hosts("cvtsoak", "10.77.4", NAMES)
PORT = 6399
# Ray takes a silent node for lost after 10 s instead of a minute.
QUICK_TO_TELL = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
# Nobody else reaches this network; trials get an equal share of a machine that others use as well.
OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
SETTINGS = (*WHOLE, "resources.max_concurrent=2", "budget.trials=8", "max_epochs=16", "resources.retries=20")
SETTINGS += ("resources.wait_s=200",)
AGAIN = 'for try in 1 2 3; do "$@"; code=$?; sleep 1; done; exit $code'  # as our launch files do
RAY = str(Path(sys.executable).with_name("ray"))


@contextlib.contextmanager
def one_node(folder: Path, port: int = PORT) -> Iterator[Mapping[str, str]]:
    """A Ray that outlives the drivers on it, with two CPUs; yields what a driver's environment has to say of it."""
    temp = Path(tempfile.mkdtemp(prefix="sk", dir="/tmp"))  # short: sockets lie below
    options = ("--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false")
    own = (*options, "--node-ip-address=127.0.0.1", f"--temp-dir={temp}", "--object-store-memory=100000000")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ray.log").open("w") as log:
        ray = subprocess.Popen(
            ["sh", "-c", AGAIN, "sh", RAY, "start", *own],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **OPEN},
            start_new_session=True,
        )
    try:
        _started(folder / "ray.log")
        yield {"RAY_ADDRESS": f"127.0.0.1:{port}", **OPEN}
    finally:
        os.killpg(ray.pid, signal.SIGTERM)
        ray.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def _started(log: Path, times: int = 1, seconds: float = 150) -> None:
    """Wait until `ray start` has said so often in its log that it is through."""
    until = time.monotonic() + seconds
    while not log.exists() or log.read_text().count("Ray runtime started") < times:
        if time.monotonic() > until:
            raise TimeoutError(f"Ray did not start within {seconds} s; see {log}")
        time.sleep(0.5)


class Cluster:
    """Ray on three hosts. Trials run on all but the head, where the driver is; logs lie in `folder`."""

    def __init__(self, folder: Path, environment: Mapping[str, str], temp: Path) -> None:
        self._folder, self._base, self._temp, self.head = folder, environment, temp, ""
        self._starts = 0

    @property
    def environment(self) -> Mapping[str, str]:
        address = {"RAY_ADDRESS": f"{HOSTS.address(self.head)}:{PORT}"}
        return {**self._base, **QUICK_TO_TELL, **OPEN, **address}

    def up(self, head: str) -> None:
        """Start Ray anew, with another head if need be."""
        self.head = head
        for name in (head, *(name for name in NAMES if name != head)):
            log = self._folder / f"ray-{name}.log"
            before = log.read_text().count("Ray runtime started") if log.exists() else 0
            self.join(name)
            if name == head:
                _started(log, before + 1)

    def join(self, name: str, ray: str = RAY) -> subprocess.Popen[str]:
        """Start a node of Ray on a host."""
        self._starts += 1
        at, temp = HOSTS.address(name), self._temp / f"{name}{self._starts}"
        head = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        role = head if name == self.head else (f"--address={self.environment['RAY_ADDRESS']}", "--num-cpus=2")
        own = ("--block", f"--temp-dir={temp}", f"--node-ip-address={at}", "--object-store-memory=100000000")
        env = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        return self._start(name, f"ray-{name}.log", env, "sh", "-c", AGAIN, "sh", ray, "start", *role, *own)

    def drive(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Run a driver on the head's host."""
        return self._start(self.head, "driver.log", self.environment, *command)

    def _start(self, name: str, log: str, env: Mapping[str, str], *command: str) -> subprocess.Popen[str]:
        with (self._folder / log).open("a") as file:
            return HOSTS.start(name, *command, env=env, cwd=self._folder, log=file)

    def restart(self, name: str) -> None:
        """What is left on a host ends, and Ray is started there again."""
        HOSTS.signal(name, signal.SIGKILL)
        self.join(name)


@contextlib.contextmanager
def cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Three hosts without Ray so far. They end with all that runs on them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise SystemExit("hosts of their own need root and iproute2.")
    temp = Path(tempfile.mkdtemp(prefix="sk", dir="/tmp"))  # short: sockets lie below
    try:
        HOSTS.up()
        yield Cluster(folder, environment, temp)
    finally:
        HOSTS.down()
        time.sleep(1)
        shutil.rmtree(temp, ignore_errors=True)


# How a node is lost, and how that is undone: frozen, cut off, killed.
WAYS: tuple[tuple[Callable[[str], None], Callable[[str], None]], ...] = (
    (lambda name: HOSTS.signal(name, signal.SIGSTOP), lambda name: HOSTS.signal(name, signal.SIGCONT)),
    (HOSTS.cut, HOSTS.heal),
    (lambda name: HOSTS.signal(name, signal.SIGKILL), lambda name: None),
)


def node_lost(bench: Bench, count: int = 6, settings: Sequence[str] = SETTINGS) -> str | None:
    """Hurt the node of a running trial until that trial has reported from elsewhere, then undo it.

    The attempt that was lost must not bring anything into the journal after that.
    """
    with cluster(bench.folder, bench.environment()) as ray:
        ray.up("h1")
        driver = bench.watched(ray.drive(bench.command(settings)))
        while len(bench.faults) < count:
            if not bench.in_time:
                return None
            bench.wait_for_reports(3)
            victim = bench.wait(lambda: _reporting(bench))
            hurt, undo = WAYS[len(bench.faults) % len(WAYS)]
            hurt(victim["node"])
            bench.hurt(victim["trial"])
            fault = bench.faults[-1]["t"]
            bench.wait(lambda: _since(bench, victim, fault))  # noqa: B023
            undone = time.time()
            undo(victim["node"])
            bench.wait_for_reports(3)
            late = [e for e in bench.reports_after(undone, victim["trial"]) if e["attempt"] <= victim["attempt"]]
            assert not late, late
            ray.restart(victim["node"])
        code = bench.ended(driver)
        assert code == 0, bench.said()[-1500:]
        check(bench.study, code)
    bench.as_without(settings)
    return "trials go on elsewhere, a thawed or healed attempt commits nothing: the same epochs as without"


def _reporting(bench: Bench) -> Event | None:
    """The newest attempt of a running trial that has reported something."""
    return next((e for e in reversed(bench.running()) if bench.reports_after(e["t"], e["trial"])), None)


def _since(bench: Bench, victim: Event, t: float) -> bool:
    """Whether a later attempt of a trial has reported since `t`."""
    return any(e["attempt"] > victim["attempt"] for e in bench.reports_after(t, victim["trial"]))


def head_killed(
    bench: Bench, successors: Sequence[str] = ("h1", "h2"), settings: Sequence[str] = SETTINGS
) -> str | None:
    """The head and the driver on it end at once. The nodes, and what trains on them, are left to find out."""
    with cluster(bench.folder, bench.environment()) as ray:
        ray.up("h1")
        driver = bench.watched(ray.drive(bench.command(settings)))
        for successor in successors:
            bench.wait_for_reports(6)
            HOSTS.signal(ray.head, signal.SIGKILL)
            driver.wait()
            bench.hurt()
            check(bench.study)
            ray.up(successor)
            driver = bench.watched(ray.drive(bench.command(settings)))
        code = bench.ended(driver)
        assert code == 0, bench.said()[-1500:]
        check(bench.study, code)
    bench.as_without(settings)
    return "a new cluster, once with its head on another host, and the same command: the same epochs as without"


def other_ray(bench: Bench) -> str | None:
    """A node, then a driver, of another Ray than the cluster's."""
    return _another(bench, sys.executable, "2.54.0")


def other_python(bench: Bench) -> str | None:
    """The same of another Python, which has to be there: `uv` finds it on PATH."""
    return _another(bench, "3.12", version("ray"))


def _another(bench: Bench, python: str, ray_version: str) -> str:
    place = bench.folder / "other"
    subprocess.run(["uv", "venv", "--quiet", "--python", python, str(place)], check=True)
    wanted = f"ray=={ray_version}"
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", str(place / "bin/python"), wanted], check=True)
    with cluster(bench.folder, bench.environment()) as ray:
        ray.up("h1")
        driver = bench.watched(ray.drive(bench.command(SETTINGS)))
        bench.wait_for_reports(2)
        bench.hurt()
        joining = ray.join("h3", str(place / "bin" / "ray"))
        code = bench.ended(joining, 240)  # Ray 2.54 asks for 40 s what the other does not tell, three times
        assert code != 0 and bench.ended(driver) == 0
        told = (bench.folder / "ray-h3.log").read_text()
        assert "Version mismatch" in told or "Could not read 'temp_dir' from GCS" in told
        check(bench.study, 0)
        for name in NAMES:
            HOSTS.signal(name, signal.SIGKILL)
        ray.join("h1", str(place / "bin" / "ray"))
        time.sleep(10)
        refused = bench.ended(ray.drive(bench.command((*SETTINGS, "name=other"))))
        assert refused == 4 and "cluster/requirements.txt" in bench.said()
    bench.as_without(SETTINGS)
    return f"`ray start` there ends with exit code {code}, and a driver of ours there with 4; the study does not notice"
