"""`cluster/ray-job.sh` on a real Ray cluster with a token: submit, submit again, stop, resume, and a wrong token."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from cvtune import history as histories
from cvtune import lease
from tests.soak.nodes import AGAIN

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "cluster" / "ray-job.sh")
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0123456789abcdef" * 3
ODD = "$(touch ran) `touch ran`;touch ran & 'x' \"y\""  # the folder of the cache: Ray hands the command to a shell
MEMORY = 5_000_000_000  # bytes, of the head node: no other Ray says this number
WORKFLOW = """
from cvtune import Recipe, Source, Study, Uniform, space
from own_names import NAME  # a neighbor, which travels with the working directory


def study():
    tiny = {"data.image_size": 16, "model.width": 4, "augment.flip": "none", "data.train_fraction": 0.3}
    return Study(
        name=NAME,
        data=Source(source="digits"),
        recipe=Recipe().replace({**tiny, "max_epochs": 500}),
        space=space({"augment.strength": Uniform(0, 1)}),
    ).set({"scheduler.name": "fifo", "noise_seeds": 0, "confirm.top": 0, "budget.trials": 2})
"""


@dataclass(frozen=True)
class Submission:
    """A script that was started, and what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def end(self) -> str:
        """All it printed, once it has ended."""
        self.process.wait(150)
        return self.log.read_text()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of this machine, and the environment that reaches it."""

    environment: dict[str, str]
    work: Path
    logs: Path

    def submit(self, log: str, *settings: str) -> Submission:
        """Run the script in the working directory, as a person would."""
        line = ["bash", SCRIPT, "workflow.py", "--storage", str(self.work.parent / "studies")]
        line += ["--cache", str(self.work.parent / ODD), *settings]
        with (self.work.parent / log).open("wb") as out:
            process = subprocess.Popen(line, stdout=out, stderr=out, cwd=self.work, env=self.environment)
        return Submission(process, Path(out.name))

    def ask(self, job: str, token: str) -> dict[str, Any]:
        """What the job server says of a job."""
        asked = Request(f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/{job}")
        asked.add_header("Authorization", f"Bearer {token}")
        with urlopen(asked, timeout=30) as answer:
            return dict(json.load(answer))


def free_ports(count: int) -> list[str]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node with a job server and a token. Ended by its process id."""
    home = tmp_path_factory.mktemp("ray-job")
    (home / "token").write_text(TOKEN)
    (home / "work").mkdir()
    (home / "work" / "workflow.py").write_text(WORKFLOW)
    (home / "work" / "own_names.py").write_text("NAME = 'digits-job'\n")
    port, dashboard, agent, agent_grpc, metrics, client = free_ports(6)
    line = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    line += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    line += [f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1"]
    line += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=200000000", f"--memory={MEMORY}"]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CVTUNE_"))}
    own |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    own |= {"RAY_AUTH_TOKEN_PATH": str(home / "token"), "TMPDIR": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    log = home / "head.txt"
    # A short path: those of sockets have a limit.
    with log.open("wb") as out, tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        again = ["sh", "-c", AGAIN, "sh", *line]
        env = {**own, "RAY_TMPDIR": folder}
        head = subprocess.Popen(again, stdout=out, stderr=out, env=env, start_new_session=True)
        until = time.monotonic() + 300
        while b"started" not in log.read_bytes():
            assert head.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        own["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        yield Cluster(own, home / "work", Path(folder) / "ray" / "session_latest" / "logs" / "jobs")
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)


@dataclass(frozen=True)
class Story:
    """A study that is submitted, submitted again while it runs, stopped, and submitted once more."""

    folder: Path
    first: str
    second: str
    stop: subprocess.CompletedProcess[str]
    interrupted: histories.History
    third: str
    third_code: int


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Story:
    folder = cluster.work.parent / "studies" / "digits-job"
    first = cluster.submit("first.txt")
    wait_until(first, lambda: "submitted successfully" in first.log.read_text())
    second = cluster.submit("second.txt")
    wait_until(first, lambda: (folder / "study.json").is_file() and histories.load(folder).epochs >= 2)
    wait_until(first, lambda: "following its log" in second.log.read_text())
    line = [RAY, "job", "stop", "cvtune-digits-job"]
    stop = subprocess.run(line, capture_output=True, text=True, check=False, env=cluster.environment, timeout=150)
    texts = first.end(), second.end()
    interrupted = histories.load(folder)
    third = cluster.submit("third.txt", "--set", f"budget.epochs={interrupted.epochs + 6}")
    return Story(folder, *texts, stop, interrupted, third.end(), third.process.returncode)


def wait_until(submission: Submission, reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not reached():
        assert submission.process.poll() is None and time.monotonic() < until, submission.log.read_text()
        time.sleep(0.3)


@pytest.mark.long
def test_the_job_runs_on_the_cluster_with_its_token_and_its_neighbors(story: Story) -> None:
    """RAY_ADDRESS, which the job server sets, led to that head; own_names.py was there to import."""
    assert "Job 'cvtune-digits-job' submitted successfully" in story.first
    nodes = json.loads((story.folder / "study.json").read_text())["provenance"]["nodes"]
    assert [node["memory"] for node in nodes] == [MEMORY]
    assert TOKEN not in story.first + story.second + story.third
    home = story.folder.parents[1]
    assert (home / ODD).is_dir() and not list(home.rglob("ran"))


@pytest.mark.long
def test_a_second_submission_follows_the_first(story: Story) -> None:
    assert re.search(r"this study is job cvtune-digits-job already \((PENDING|RUNNING)\); following", story.second)
    assert "submitted successfully" not in story.second
    assert "epoch 1/500" in story.second and "interrupted; the same command again" in story.second


@pytest.mark.long
def test_ray_job_stop_ends_the_study_in_good_order(story: Story, cluster: Cluster) -> None:
    """cvtune says its last word before it exits with 75; Ray, told to wait, had nothing to kill."""
    job = cluster.ask("cvtune-digits-job", TOKEN)
    assert job["status"] == "STOPPED" and job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    assert story.stop.returncode == 0 and "'cvtune-digits-job' was stopped" in story.stop.stdout + story.stop.stderr
    assert "interrupted; the same command again takes it up where it was." in story.first
    supervisor = (cluster.logs / "supervisor-cvtune-digits-job.log").read_text()
    assert "terminated gracefully with SIGTERM" in supervisor and "SIGKILL" not in supervisor
    assert story.interrupted.terms[-1]["why"] == "SIGTERM" and not story.interrupted.complete
    assert (story.folder / "tables" / "epochs.parquet").is_file()


@pytest.mark.long
def test_the_same_command_takes_it_up_under_a_new_id(story: Story) -> None:
    assert story.third_code == 0 and "Job 'cvtune-digits-job~2' succeeded" in story.third, story.third
    history = histories.load(story.folder)
    assert history.complete and story.interrupted.epochs < history.epochs <= story.interrupted.epochs + 8
    for record in history.trials.values():
        assert [epoch["step"] for epoch in record.epochs] == list(range(1, len(record.epochs) + 1))
    owner = lease.owner(story.folder)
    assert owner is not None and owner["term"] == 2 and owner["released"]


@pytest.mark.long
def test_a_wrong_token_is_refused(story: Story, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("f" * 48)
    wrong = Cluster({**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, cluster.work, cluster.logs)
    refused = wrong.submit("refused.txt", "--name", "intruder")
    text = refused.end()
    assert refused.process.returncode == 4 and "refuses the token" in text and "Traceback" not in text
    assert "f" * 48 not in text and TOKEN not in text
    assert not (story.folder.parent / "intruder").exists()
    with pytest.raises(HTTPError, match="403"):
        cluster.ask("cvtune-digits-job", "f" * 48)
