"""The Slurm scripts on a real Slurm: three nodes with addresses and names of their own (see tests/rig/slurm.py).

Each test is a story of one or two jobs, because starting Ray on several nodes of one machine takes half a minute.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvtune import journal
from tests.invariants import check
from tests.rig.slurm import NETWORK, NODES, Rig, missing

pytestmark = [pytest.mark.rig, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
# Model, data source, transform and loss of the user's own; an epoch takes at least a second, however fast the machine.
WORKFLOW = """
from cvtune import FIFO, Budget, LogUniform, Recipe, Source, Study, Uniform, space

def study():
    recipe = Recipe().replace({
        "data.image_size": 16, "augment.policy": "python:slow:transform", "model.name": "python:own_functions:model",
        "loss.name": "python:own_functions:loss", "max_epochs": 10,
    })
    return Study(
        name="own", data=Source(source="python:own_functions:images"), recipe=recipe, scheduler=FIFO(),
        space=space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-3, 1e-1)}),
        budget=Budget(trials=6),
    ).set({"noise_seeds": 0, "confirm.top": 0})
"""
SLOW = """
import time
import albumentations as A
import own_functions

class Pause(A.ImageOnlyTransform):
    def apply(self, img, **params):
        time.sleep(0.005)  # 210 images per epoch
        return img

def transform(strength, image_size):
    return A.Compose([Pause(p=1), own_functions.transform(strength, image_size)])
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    problem = missing()
    if problem:
        assert os.environ.get("CVTUNE_RIG") != "must", problem
        pytest.skip(problem)
    root = Path(tempfile.mkdtemp(prefix="rig", dir="/tmp"))  # short: sockets lie below
    root.rmdir()
    cluster = Rig(root)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def jobs(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Jobs]:
    rig.wait_idle()
    submitted = Jobs(rig, rig.root / "jobs" / request.node.name)
    yield submitted
    submitted.cancel()


class Jobs:
    """Submits jobs whose studies and output lie in `folder`, from a checkout's workflows."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder, self.studies = rig, folder, folder / "studies"
        self.submitted: list[str] = []
        folder.mkdir(parents=True)
        (folder / "own.py").write_text(WORKFLOW)
        (folder / "slow.py").write_text(SLOW)
        shutil.copy(ROOT / "workflows" / "own_functions.py", folder)

    def submit(self, script: str, *options: str, arguments: tuple[str, ...], **variables: str) -> str:
        """Submit `cluster/<script>`, with 2 CPUs per node unless told otherwise; returns the job's id."""
        environment = {"CVTUNE_ENV": sys.prefix, "CVTUNE_STORAGE": str(self.studies), **variables}
        command = ["sbatch", "--parsable", f"--chdir={self.folder}", "--cpus-per-task=2", "--mem-per-cpu=1000"]
        command += [f"--output={self.folder}/%A.out", *options, str(ROOT / "cluster" / script), *arguments]
        self.submitted.append(self.rig.run(*command, environment=environment).strip())
        return self.submitted[-1]

    def cancel(self) -> None:
        for job in self.submitted:
            self.rig.run("scancel", job, check=False)

    def output(self, job: str) -> str:
        return (self.folder / f"{job}.out").read_text()

    def until(self, what: Callable[[], object], job: str, seconds: float = 900) -> None:
        """Wait until something holds; a job that ended meanwhile, or time that ran out, is an error with its output."""
        limit = time.monotonic() + seconds
        while not what():
            state = self.rig.state(job)
            assert state in ("RUNNING", "PENDING", "COMPLETING"), f"{state}\n{self.output(job)}"
            assert time.monotonic() < limit, f"waited {seconds} s\n{self.output(job)}"
            time.sleep(0.5)

    def completes(self, job: str, seconds: float = 900) -> None:
        state = self.rig.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", seconds=seconds)
        assert state == "COMPLETED", f"{state}\n{self.output(job)}"

    def epochs(self, study: str) -> list[dict[str, Any]]:
        """What the study's journal holds of reports so far, each with node and process that trained it."""
        if not (self.studies / study / "study.json").exists():
            return []
        where: dict[str, dict[str, Any]] = {}
        found = []
        for event in journal.read(self.studies / study):
            if event["kind"] == "segment":
                where[event["trial"]] = {"node": event["node"], "pid": event["pid"]}
            elif event["kind"] == "epoch":
                found.append({**event, **where[event["trial"]]})
        return found

    def nodes(self, study: str) -> set[str]:
        """The nodes on which epochs of a study were trained."""
        return {event["node"] for event in self.epochs(study)}


def settings(values: dict[str, object]) -> tuple[str, ...]:
    return tuple(word for name, value in values.items() for word in ("--set", f"{name}={value}"))


def no_traces(jobs: Jobs) -> None:
    """After its end a job has left neither token nor temporary folder, nor has any job of this rig before it."""
    assert not list(jobs.studies.glob(".slurm/*/token"))
    assert not [path for node in NODES for path in (jobs.rig.root / f"{node}.tmp").glob("*/cvtune-*")]


def test_the_quickstart_on_three_nodes_beside_another_job_of_its_user(rig: Rig, jobs: Jobs) -> None:
    quickstart = str(ROOT / "workflows" / "quickstart.py")
    half, long = settings({"budget.trials": 16}), settings({"budget.trials": 1000})
    # The other job trains, and goes on training, before the short one starts: both run while strangers try their ports.
    other = jobs.submit("slurm.sbatch", "--nodes=2", "--cpus-per-task=1", arguments=("own.py", *long))
    jobs.until(lambda: jobs.epochs("own"), other)
    whole = jobs.submit("slurm.sbatch", "--nodes=3", "--cpus-per-task=1", arguments=(quickstart, *half))
    jobs.until(lambda: jobs.epochs("quickstart"), whole)
    assert rig.hosts(whole) > rig.hosts(other)  # they share nodes
    strangers_are_refused(rig, jobs, whole, other)
    rig.run("scancel", other)
    assert rig.wait(other, "CANCELLED", "PENDING", seconds=180) == "CANCELLED"
    jobs.completes(whole)
    history = check(jobs.studies / "quickstart", returncode=0)
    assert len(history.of("search")) == 16
    assert jobs.nodes("quickstart") == set(NODES)
    for node in NODES:  # the images were decoded once per node
        assert len(list((rig.root / f"{node}.tmp" / whole / "cvtune").glob("*.store"))) == 1
    check(jobs.studies / "own")
    no_traces(jobs)


def strangers_are_refused(rig: Rig, jobs: Jobs, *pair: str) -> None:
    """Another user of the node reads nothing; no port does anything without the token of its own job."""
    tokens = []
    for job in pair:
        meet, temp = jobs.studies / ".slurm" / f"{job}.0", rig.root / "n1.tmp" / job / f"cvtune-{job}.0"
        tokens.append((meet / "token").read_text())
        assert (meet / "token").stat().st_mode & 0o777 == 0o600
        assert tokens[-1] not in jobs.output(job)
        for command in (["cat", str(meet / "token")], ["ls", str(temp)], ["ls", str(temp / "session_latest")]):
            stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
            refused = subprocess.run(stranger, capture_output=True, text=True, check=False)
            assert refused.returncode != 0 and "Permission denied" in refused.stderr
    ports = rig.ports("n1", "raylet|gcs_server|ray::|cvtune")
    assert len(ports) >= 10
    accepted = [0, 0]
    for port, owner in ports.items():
        for token in (None, "0" * 64):
            assert answers(NETWORK.address("n1"), port, token, (*HARMLESS, PULL)) in (REFUSED, ENDED), owner
        own = [answers(NETWORK.address("n1"), port, token, HARMLESS) - REFUSED - ENDED != set() for token in tokens]
        assert own != [True, True]
        accepted = [so_far + one for so_far, one in zip(accepted, own, strict=True)]
    assert min(accepted) >= 4  # the head or raylet, its agent, trials: what answers to one token not to the other


REFUSED, ENDED = {"UNAUTHENTICATED"}, {"ENDED"}
# One method of each service of Ray that listens; the last one is not called with a token that could make it work.
HARMLESS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/GetTraceback",
)
PULL = "ObjectManagerService/Pull"


def answers(host: str, port: int, token: str | None, methods: tuple[str, ...]) -> set[str]:
    """How a port answers calls of gRPC, or else of HTTP, with a token or none; without what it does not offer.

    `ENDED` if nobody listens there any more: trials end while the ports are tried.
    """
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    found = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in methods:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", metadata=metadata, timeout=30)
                found.add("OK")
            except grpc.RpcError as error:
                found.add(error.code().name)
    try:
        if found == {"UNAVAILABLE"}:  # it does not speak gRPC
            found = {http_answer(host, port, dict(metadata))}
        elif "UNAVAILABLE" in found:
            socket.create_connection((host, port), timeout=30).close()
    except ConnectionRefusedError:
        return ENDED
    return found - {"UNIMPLEMENTED"}


def http_answer(host: str, port: int, headers: dict[str, str]) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("POST", "/get_or_create_runtime_env", b"", headers)
    status = connection.getresponse().status
    return "UNAUTHENTICATED" if status in (401, 403) else str(status)


def test_a_job_at_its_time_limit_is_queued_again_and_resumes(rig: Rig, jobs: Jobs) -> None:
    longer = settings({"budget.trials": 12, "max_epochs": 15})
    job = jobs.submit("slurm.sbatch", "--nodes=2", "--time=9", "--signal=B:USR1@100", arguments=("own.py", *longer))
    jobs.until(lambda: jobs.epochs("own"), job)
    rig.reach_time_limit(job)
    first = jobs.epochs("own")
    assert 0 < len(first) < 180, jobs.output(job)
    jobs.completes(job)
    assert rig.show(job, "Restarts") == "1" and "queued again, 1 of at most 20" in jobs.output(job)
    check(jobs.studies / "own", returncode=0)
    assert len(jobs.epochs("own")) == 180
    assert jobs.epochs("own")[: len(first)] == first
    assert len(jobs.nodes("own")) == 2  # also on a node that is not the driver's
    no_traces(jobs)


def test_a_preempted_job_resumes_and_outlives_the_loss_of_a_node(rig: Rig, jobs: Jobs) -> None:
    job = jobs.submit("slurm.sbatch", "--nodes=3", arguments=("own.py",))
    jobs.until(lambda: jobs.epochs("own"), job)
    every_cpu = ("--nodes=3", "--cpus-per-task=4", "--partition=urgent", "--time=1", "--wrap=srun sleep 5")
    urgent = rig.run("sbatch", "--parsable", "--output=/dev/null", *every_cpu).strip()
    rig.wait(urgent, "COMPLETED", seconds=300)
    before = len(jobs.epochs("own"))
    jobs.until(lambda: len(jobs.epochs("own")) > before, job)
    assert rig.show(job, "Restarts") == "1"
    driver = rig.show(job, "BatchHost")
    lost = next(node for node in NODES if node != driver)
    jobs.until(lambda: any(e["node"] == lost for e in jobs.epochs("own")[before:]), job)
    rig.kill_node(lost)
    try:
        jobs.completes(job)
    finally:
        rig.boot(lost)
    check(jobs.studies / "own", returncode=0)
    assert len(jobs.epochs("own")) == 60
    assert rig.show(job, "Restarts") == "1"  # trials went on elsewhere
    no_traces(jobs)


def test_a_node_whose_network_was_cut_comes_back(rig: Rig, jobs: Jobs) -> None:
    arguments = ("own.py", *settings({"budget.trials": 12, "max_epochs": 16}))
    # Ray finds out after 10 s instead of a minute.
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
    job = jobs.submit("slurm.sbatch", "--nodes=2", arguments=arguments, **quick)
    jobs.until(lambda: jobs.epochs("own"), job)
    cut = next(iter(rig.hosts(job) - {rig.show(job, "BatchHost")}))
    jobs.until(lambda: any(e["node"] == cut for e in jobs.epochs("own")), job)
    rig.cut(cut)
    try:
        jobs.until(lambda: any(e["kind"] == "retry" for e in journal.read(jobs.studies / "own")), job)
    finally:
        rig.heal(cut)
    at = len(jobs.epochs("own"))
    jobs.until(lambda: any(e["node"] == cut for e in jobs.epochs("own")[at:]), job)
    jobs.completes(job)
    check(jobs.studies / "own", returncode=0)
    assert len(jobs.epochs("own")) == 192
    assert f"{cut}: Ray ended by itself" in jobs.output(job)
    assert list(jobs.studies.glob(f"own/logs/ray-{job}.0/{cut}/logs/raylet.out"))


def test_an_array_runs_a_study_per_line(rig: Rig, jobs: Jobs) -> None:
    tiny = " ".join(settings({"budget.trials": 2, "max_epochs": 4}))
    (jobs.folder / "studies.txt").write_text(f"own.py --name 'first' {tiny}\nown.py --name second {tiny}\n")
    array = jobs.submit("slurm-array.sbatch", "--array=1-2", "--time=9", arguments=("studies.txt",))
    jobs.completes(f"{array}_1")
    jobs.completes(f"{array}_2")
    for name in ("first", "second"):
        check(jobs.studies / name, returncode=0)
    no_traces(jobs)


def test_an_element_at_its_time_limit_is_queued_again_alone(rig: Rig, jobs: Jobs) -> None:
    long = " ".join(settings({"budget.trials": 8, "max_epochs": 14}))
    short = " ".join(settings({"budget.trials": 1, "max_epochs": 2}))
    (jobs.folder / "studies.txt").write_text(f"own.py --name short {short}\nown.py --name long {long}\n")
    limits = ("--array=1-2", "--time=9", "--signal=B:USR1@100")
    array = jobs.submit("slurm-array.sbatch", *limits, arguments=("studies.txt",))
    jobs.until(lambda: jobs.epochs("long"), f"{array}_2")
    rig.reach_time_limit(f"{array}_2")
    jobs.completes(f"{array}_2")
    jobs.completes(f"{array}_1")
    assert [rig.show(f"{array}_{n}", "Restarts") for n in (1, 2)] == ["0", "1"]
    assert len(jobs.epochs("long")) == 112


def test_workers_join_a_study_and_leave_it(rig: Rig, jobs: Jobs) -> None:
    """The study's own job has one CPU, its trials need two: they run where workers offer them."""
    wanted = settings({"resources.cpu": 2, "resources.wait_s": 300, "resources.retries": 0, "budget.trials": 4})
    main = jobs.submit("slurm.sbatch", "--nodes=1", "--cpus-per-task=1", arguments=("own.py", *wanted))
    first = jobs.submit("worker.sbatch", arguments=(main,), CVTUNE_IDLE_S="60")
    jobs.until(lambda: len(jobs.epochs("own")) > 3, main)
    second = jobs.submit("worker.sbatch", arguments=(main,), CVTUNE_IDLE_S="20")
    jobs.until(lambda: len({(e["node"], e["pid"]) for e in jobs.epochs("own")}) > 1, main)
    rig.run("scancel", "--batch", "--signal=TERM", first)  # as when it is preempted
    jobs.completes(first, 180)
    jobs.completes(main)
    jobs.completes(second, 300)
    assert "nothing to do for 20 s" in jobs.output(second)
    history = check(jobs.studies / "own", returncode=0)
    assert {record.reason for record in history.trials.values()} == {"completed"}  # none, although none may be retried
    no_traces(jobs)


def test_a_node_with_other_images_is_refused(rig: Rig, jobs: Jobs, photo_folder: Path) -> None:
    images, others = jobs.folder / "images", jobs.folder / "others"
    shutil.copytree(photo_folder, images)
    shutil.copytree(photo_folder, others)
    next(iter(others.glob("*/*.jpg"))).unlink()
    try:
        for node in NODES[1:]:
            rig.mount(node, others, images)
        few = {"data.image_size": 32, "model.width": 8, "max_epochs": 2, "noise_seeds": 0, "confirm.top": 0}
        job = jobs.submit("slurm.sbatch", "--nodes=2", arguments=("images", *settings({**few, "budget.trials": 4})))
        jobs.completes(job)
    finally:
        for node in NODES[1:]:
            rig.unmount(node, images)
    history = check(jobs.studies / "images", returncode=0)
    refused = [record for record in history.trials.values() if record.reason == "data_error"]
    assert refused and all(re.search("n[23] sees other images", record.message or "") for record in refused)
    assert jobs.nodes("images") == {rig.show(job, "BatchHost")}
