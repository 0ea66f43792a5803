"""The stand-in for W&B's server, tried with the real client: what the other tests of tracking rest on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.wandb_answers import HISTORY
from tests.tracking.wandb_server import WandbServer, wandb_server

KEY = "local-" + "5" * 40
CLIENT = """
import json, sys, wandb
from pathlib import Path

settings = wandb.Settings(
    console="off", x_disable_stats=True, disable_git=True, disable_code=True, init_timeout=6, finish_timeout=15,
    x_file_stream_transmit_interval=1, x_file_stream_retry_wait_min_seconds=0.2,
    x_file_stream_retry_wait_max_seconds=0.5, x_graphql_retry_wait_min_seconds=0.2,
    x_graphql_retry_wait_max_seconds=0.5,
)
first, last = int(sys.argv[1]), int(sys.argv[2])
run = wandb.init(project="p", id="abc", name="a name", group="g", job_type="trial", tags=["x"], resume="allow",
                 config={"augment": {"strength": 0.5}}, settings=settings)
print(run.starting_step, flush=True)
for step in range(first, last):
    run.log({"loss": 1 / (step + 1), "epoch": step}, step=step)
if "wait" in sys.argv:
    sys.stdin.readline()
if "artifact" in sys.argv:
    Path("table.csv").write_text("trial,loss\\n")
    artifact = wandb.Artifact("tables", type="tables")
    artifact.add_file("table.csv")
    run.log_artifact(artifact)
run.summary["reason"] = "completed"
run.finish(exit_code=1 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server(KEY) as found:
        yield found


def client(server: WandbServer, tmp: Path, *arguments: object, key: str = KEY) -> subprocess.Popen[str]:
    """A process that logs steps `first` to `last` (exclusive) of run "abc"; see CLIENT for what else it may be told."""
    where = {f"WANDB_{name}_DIR": str(tmp / name) for name in ("CACHE", "CONFIG", "DATA")}
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp)}
    env = {**os.environ, **where, **quiet, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": key}
    line = [sys.executable, "-c", CLIENT, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=tmp, env=env, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate("\n", timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_keeps_what_a_run_sends_and_what_resumes_it(server: WandbServer, tmp_path: Path) -> None:
    assert finish(client(server, tmp_path, 0, 3, "artifact")) == "0\n"
    run = server.runs["abc"]
    assert [(row["_step"], row["epoch"], row["loss"]) for row in run.rows] == [(0, 0, 1), (1, 1, 0.5), (2, 2, 1 / 3)]
    assert run.config == {"augment": {"strength": 0.5}}
    asked = {"displayName": "a name", "groupName": "g", "jobType": "trial", "tags": ["x"], "project": "p"}
    assert {name: run.asked[name] for name in asked} == asked
    assert run.summary["reason"] == "completed" and run.summary["loss"] == pytest.approx(1 / 3)
    assert run.state == "finished"
    (artifact,) = server.artifacts
    assert artifact.files["table.csv"] == b"trial,loss\n" and artifact.by == "abc"
    assert set(json.loads(artifact.files["wandb_manifest.json"])["contents"]) == {"table.csv"}
    assert "wandb-metadata.json" in run.files

    assert finish(client(server, tmp_path, 0, 5, "artifact", "fail")) == "3\n"  # told where the first one ended
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4]
    assert run.state == "failed" and len(server.artifacts) == 1
    assert not server.answers.unknown


@pytest.mark.slow
def test_a_client_that_is_killed_leaves_a_run_that_another_one_completes(server: WandbServer, tmp_path: Path) -> None:
    killed = client(server, tmp_path, 0, 4, "wait")
    until = time.monotonic() + 300
    while not (server.runs.get("abc") and server.runs["abc"].streams.get(HISTORY)):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 0 < len(server.runs["abc"].rows) < 4 and server.runs["abc"].state == "running"
    finish(client(server, tmp_path, 0, 4))
    assert [row["_step"] for row in server.runs["abc"].rows] == [0, 1, 2, 3]
    assert server.runs["abc"].state == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["429", "refuse"])
def test_a_client_outlasts_a_bad_mood(server: WandbServer, tmp_path: Path, mood: str) -> None:
    process = client(server, tmp_path, 0, 4, "wait")
    assert process.stdout is not None and process.stdout.readline() == "0\n"
    server.behave(mood)
    before = len(server.requests)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(2)
    assert server.runs["abc"].state == "running"
    server.behave("fine")
    finish(process)
    assert [row["_step"] for row in server.runs["abc"].rows] == [0, 1, 2, 3]
    assert server.runs["abc"].state == "finished"
    assert mood != "429" or 429 in {request.status for request in server.requests[before:]}


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["refuse", "silent"])
def test_nothing_arrives_while_the_mood_is_bad(server: WandbServer, tmp_path: Path, mood: str) -> None:
    server.behave(mood)
    process = client(server, tmp_path, 0, 4)
    _, err = process.communicate(timeout=600)
    assert process.returncode != 0 and "CommError" in err
    assert not server.runs


@pytest.mark.slow
def test_a_wrong_key_is_refused(server: WandbServer, tmp_path: Path) -> None:
    process = client(server, tmp_path, 0, 4, key="local-" + "6" * 40)
    _, err = process.communicate(timeout=600)
    assert process.returncode != 0 and "401" in err
    assert not server.runs and {request.status for request in server.requests} == {401}
