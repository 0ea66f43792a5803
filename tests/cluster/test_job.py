"""A study's Ray job: its folder and id from the arguments, one job at a time, and no id twice."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cvtune.errors import ConfigError
from cvtune.job import STUDY, Job, Plan, folder_of, plan

ROOT = Path(__file__).resolve().parents[2]
FIRST = Path("/shared/studies/first")


def job(submission: str, status: str, folder: Path = FIRST) -> Job:
    return Job(submission, status, {STUDY: str(folder)})


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["workflows/asha.py", "--storage", "/s"], "/s/asha"),
        (["workflows/asha.py", "--storage", "/s/../t/", "--name", "other"], "/t/other"),
        (["--set", "max_epochs=2", "--storage=/s", "digits", "--set", "name=mine", "--cache", "/local"], "/s/mine"),
    ],
)
def test_the_folder_is_that_of_cvtune_run(arguments: list[str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert folder_of(arguments) == Path(folder)


def test_the_storage_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVTUNE_STORAGE", "/from/environment")
    assert folder_of(["digits"]) == Path("/from/environment/digits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits"], "--storage 'studies': a Ray job runs in a copy .* absolute path"),
        (["digits", "--storage", "here"], "--storage 'here'"),
        (["digits", "--storage", "/s", "--stroage", "x"], "No such option: --stroage.* those of `cvtune run`"),
        (["--storage", "/s"], "Missing argument .*TARGET"),
        (["missing.py", "--storage", "/s"], "workflow 'missing.py' does not exist"),
        (["digits", "--storage", "/s", "--set", "optim.lrr=1"], "'optim.lrr' cannot be set. Did you mean 'optim.lr'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_sent(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        folder_of(arguments)
    assert re.search(words, str(caught.value))


def test_a_study_gets_the_id_of_its_name() -> None:
    assert plan(FIRST, []) == Plan("new", "cvtune-first")


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_study_under_way_is_followed(status: str) -> None:
    jobs = [job("cvtune-first", "STOPPED"), job("cvtune-first~2", status), job("raysubmit_x", "RUNNING", Path("/y"))]
    assert plan(FIRST, jobs) == Plan(status, "cvtune-first~2")


@pytest.mark.parametrize("status", ["STOPPED", "SUCCEEDED", "FAILED"])
def test_a_study_that_ended_is_submitted_again_under_a_new_number(status: str) -> None:
    assert plan(FIRST, [job("cvtune-first", status)]) == Plan("new", "cvtune-first~2")
    assert plan(FIRST, [job(f"cvtune-first~{n}", status) for n in (2, 10, 9)]) == Plan("new", "cvtune-first~11")


def test_studies_never_share_an_id() -> None:
    """Names may end in a number or be the beginning of another name, and one name may stand in two folders."""
    elsewhere = Path("/other/first")
    jobs = [job("cvtune-first", "RUNNING", elsewhere), job("cvtune-first-2", "RUNNING", Path("/s/first-2"))]
    assert plan(FIRST, jobs) == Plan("new", "cvtune-first~2")
    assert plan(elsewhere, jobs) == Plan("RUNNING", "cvtune-first")
    assert plan(Path("/s/f.rst"), jobs) == Plan("new", "cvtune-f.rst")
    with pytest.raises(ConfigError, match="the name becomes a folder"):
        folder_of(["digits", "--storage", "/s", "--name", "first~2"])


@pytest.mark.slow
def test_no_server_no_client_no_address(tmp_path: Path) -> None:
    """Each with its exit code and what to do, as the script would show it."""
    environment = {**os.environ, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    line = [sys.executable, "-m", "cvtune.job", "digits", "--storage", "/s"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 4 and "RAY_API_SERVER_ADDRESS=http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    (tmp_path / "aiohttp.py").write_text("raise ImportError('No module named aiohttp')")  # as if it were not installed
    bare = {**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=bare)
    assert done.returncode == 4 and 'pip install "cvtune[cluster]"' in done.stderr
    nowhere = {name: value for name, value in os.environ.items() if name != "RAY_API_SERVER_ADDRESS"}
    script = ["bash", str(ROOT / "cluster" / "ray-job.sh"), "digits", "--storage", "/s"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 2 and "usage: RAY_API_SERVER_ADDRESS=" in done.stderr


def test_what_is_passed_on_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvtune.job import runtime_env

    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "120")
    environment = runtime_env()
    assert environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    assert "secret" not in json.dumps(environment)


@pytest.mark.slow
def test_a_stop_during_the_check_is_an_orderly_end_too(tmp_path: Path) -> None:
    """`ray job stop` signals all processes of a job at once: the check dies of it, which is no error of the study."""
    line = [sys.executable, "-m", "cvtune.cli", "run", "digits", "--storage", str(tmp_path)]
    driver = psutil.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not (checks := [c for c in driver.children() if "cvtune.preflight" in c.cmdline()]):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.2)
    for process in (*checks, driver):
        process.terminate()
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 75 and "error:" not in errors, errors
