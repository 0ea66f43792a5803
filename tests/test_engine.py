"""The engine with real Ray and real processes: what bad input gets, and what happens when things die."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest
from ray.tune import TuneError

from cvtune import cli
from cvtune.durable import is_full
from cvtune.engine import cause_of
from cvtune.errors import OwnedError
from cvtune.history import load
from cvtune.study import read
from cvtune.tune import Referee, lost
from tests.invariants import check

SETTINGS = (
    "max_epochs=3",
    "data.image_size=16",
    "model.width=4",
    "augment.flip=none",
    "data.train_fraction=0.5",
    "noise_seeds=0",
    "confirm.top=0",
)
QUICK = [part for setting in SETTINGS for part in ("--set", setting)]


def command(*arguments: str, tmp: Path) -> list[str]:
    places = ["--storage", str(tmp / "studies"), "--cache", str(tmp / "cache")]
    return [sys.executable, "-m", "cvtune.cli", *arguments, *places]


def cvtune(*arguments: str, tmp: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, tmp=tmp), capture_output=True, text=True, check=False, timeout=600, cwd=cwd or tmp
    )


# --- bad input: one paragraph, exit code, nothing left behind


def make_folder(root: Path, **classes: int) -> Path:
    from PIL import Image

    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (i * 9 % 256, 40, 200)).save(root / name / f"{i}.png")
    return root


def corrupt(folder: Path) -> Path:
    for file in sorted((folder / "cat").iterdir())[:5]:
        file.write_bytes(file.read_bytes()[:40])
    return folder


def failing(folder: Path) -> str:
    (folder / "failing_policy.py").write_text("def policy(strength, image_size):\n    return 1 / 0\n")
    return "failing_policy"


BAD_INPUT: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "missing folder": (lambda t: [str(t / "photos")], 2, "neither a workflow"),
    "missing workflow": (lambda t: [str(t / "flow.py")], 2, "does not exist"),
    "empty folder": (lambda t: [str(make_folder(t / "d"))] if (t / "d").mkdir() is None else [], 3, "class"),
    "one class": (lambda t: [str(make_folder(t / "d", cat=9))], 3, "only the class 'cat'"),
    "empty class": (lambda t: [str(make_folder(t / "d", cat=9, dog=0))], 3, "dog"),
    "corrupt images": (lambda t: [str(corrupt(make_folder(t / "d", cat=9, dog=9)))], 3, "data.max_corrupt"),
    "unknown model": (lambda t: ["digits", "--set", "model.name=torchvision:resnet81"], 2, "resnet18"),
    "unknown field": (lambda t: ["digits", "--set", "augment.strenght=1"], 2, "Did you mean 'augment.strength'"),
    "no value": (lambda t: ["digits", "--set", "augment.strength"], 2, "path=value"),
    "user function": (lambda t: ["digits", "--set", "loss.name=python:nowhere:loss"], 2, "nowhere"),
    "failing transform": (
        lambda t: ["digits", "--set", f"augment.policy=python:{failing(t)}:policy"],
        2,
        "failing_policy.py, line 2",
    ),
    "unwritable storage": (lambda t: ["digits", "--storage", "/proc/nowhere"], 2, "--storage"),
    "too many cores": (lambda t: ["digits", "--set", "resources.cpu=999"], 4, "resources.cpu"),
    "no test images": (
        lambda t: ["digits", "--set", "data.test_share=0", "--set", "confirm.top=1"],
        2,
        "--set confirm.top=0",
    ),
    "no such combination": (
        lambda t: ["digits", "--set", "scheduler.name=pbt", "--set", "searcher.name=tpe"],
        2,
        "searcher.name = tpe with scheduler.name = pbt",
    ),
    "must resume": (lambda t: ["digits", "--resume", "must"], 2, "no study 'digits'"),
}


IN_A_PROCESS = ("missing folder", "corrupt images", "too many cores")  # one for each stage; importing takes seconds


def said_by_main(line: list[str], cwd: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """The command line within this process: exit code, output, errors."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["cvtune", *line])
    monkeypatch.setattr(sys, "path", [*sys.path])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_paragraph_an_exit_code_and_leaves_nothing(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, code, said = BAD_INPUT[case]
    target = arguments(tmp_path)
    storage = [] if "--storage" in target else ["--storage", str(tmp_path / "studies")]
    line = ["run", *target, *storage, "--cache", str(tmp_path / "cache")]
    if case in IN_A_PROCESS:
        command = [sys.executable, "-m", "cvtune.cli", *line]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path)
        returned, out, err = done.returncode, done.stdout, done.stderr
    else:
        returned, out, err = said_by_main(line, tmp_path, monkeypatch)
    assert returned == code, err
    assert said in err and err.startswith("error: ") and err.strip().count("\n") == 0
    assert "Traceback" not in out + err
    assert not list((tmp_path / "studies").glob("*")) if (tmp_path / "studies").exists() else True


# --- the life of a study


def within_tune(error: Exception) -> TuneError:
    """What Ray Tune makes of an error that comes while it takes in a report."""
    try:
        try:
            raise error
        except Exception:
            raise TuneError("its traceback, as a text")  # noqa: B904  (as Ray does)
    except TuneError as told:
        return told


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OwnedError("taken over"), KeyError("x")])
def test_a_full_disk_or_a_lost_lease_within_ray_tune_is_told_as_itself(error: Exception) -> None:
    told = within_tune(error)
    assert cause_of(told) is (told if isinstance(error, KeyError) else error)
    assert cause_of(error) is error


def test_a_trial_that_found_no_room_for_its_checkpoints_ends_the_run_as_a_full_disk_does() -> None:
    referee, told = Referee(None, {}, lambda: 1), {"cut": "full", "file": "/x/checkpoints/4"}  # type: ignore[arg-type]
    with pytest.raises(OSError, match="/x/checkpoints/4") as raised:
        referee.on_trial_result(None, SimpleNamespace(trial_id="00000"), told)  # type: ignore[arg-type]
    assert is_full(raised.value)


KILLED = """Failure # 1 (occurred at 2026-11-26_17-34-01)
The actor died unexpectedly before finishing this task.
\tclass_name: TrialActor
\tpid: 4711
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR.
Failure # 2 (occurred at 2026-11-26_17-34-53)
The actor died unexpectedly before finishing this task.
\tclass_name: TrialActor
\tip: 192.0.2.2
"""


def test_a_lost_process_is_told_in_rays_words_and_memory_is_told_from_other_losses(tmp_path: Path) -> None:
    written = tmp_path / "error.txt"
    assert lost(None) == lost(written) == ("infra_lost", "")
    written.write_text(f"{KILLED}Its node was terminated.\n")
    died = "The actor died unexpectedly before finishing this task. Its node was terminated."
    assert lost(written) == ("infra_lost", died)
    written.write_text(f"{KILLED}Task was killed due to the node running low on memory.\n")
    assert lost(written)[0] == "oom_host"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study on the photo of digits that ran to its end: 5 trials, 3 epochs at most."""
    tmp = tmp_path_factory.mktemp("finished")
    done = cvtune("run", "digits", *QUICK, "--set", "budget.trials=5", tmp=tmp)
    assert done.returncode == 0, done.stderr
    missing = {word for word in ("best", "recipe", "saved", "tables", "val_accuracy") if word not in done.stdout}
    assert missing == (set() if "stopped_scheduler" in done.stdout else {"saved"})  # which depends on who reports first
    return tmp


@pytest.mark.slow
def test_a_finished_study_is_complete_in_itself(finished: Path) -> None:
    study = finished / "studies" / "digits"
    check(study, 0)
    present = {path.name for path in study.iterdir()}
    assert present == {"study.json", "journal", "lease.json", "trials", "tables", "best"}
    recipe = json.loads((study / "best" / "recipe.json").read_text())
    assert recipe["optim"]["lr"] > 0
    provenance = json.loads((study / "study.json").read_text())["provenance"]
    assert provenance["data_fingerprint"] and provenance["versions"]["ray"] and provenance["images"]["train"] > 1000


@pytest.mark.slow
def test_the_same_command_again_says_complete_and_another_definition_is_refused(finished: Path) -> None:
    again = cvtune("run", "digits", *QUICK, "--set", "budget.trials=5", tmp=finished)
    assert again.returncode == 0 and "complete; nothing to do" in " ".join(again.stdout.split())
    other = cvtune("run", "digits", *QUICK, "--set", "budget.trials=5", "--set", "data.batch_size=32", tmp=finished)
    assert other.returncode == 2 and "data.batch_size: 64 -> 32" in other.stderr and "--name" in other.stderr
    never = cvtune("run", "digits", *QUICK, "--resume", "never", tmp=finished)
    assert never.returncode == 2 and "--resume never" in never.stderr


@pytest.mark.slow
def test_a_larger_budget_takes_a_complete_study_further(finished: Path) -> None:
    more = cvtune("run", "digits", *QUICK, "--set", "budget.trials=7", tmp=finished)
    assert more.returncode == 0, more.stderr
    study = finished / "studies" / "digits"
    check(study, 0)
    assert pq.read_metadata(study / "tables" / "trials.parquet").num_rows == 7
    assert len(list((study / "journal").iterdir())) == 2


@pytest.mark.slow
def test_list_status_logs_and_export_show_the_study(finished: Path) -> None:
    listed = cvtune("list", tmp=finished)  # --cache is no option of list
    assert listed.returncode == 2
    places = ["--storage", str(finished / "studies")]

    def show(*arguments: str) -> str:
        line = [sys.executable, "-m", "cvtune.cli", *arguments, *places]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=finished)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "digits" in show("list") and "complete" in show("list")
    assert "completed" in show("status", "digits")
    assert "trial 00000 epoch 1/3" in show("logs", "digits")
    assert "epoch 1: train_loss" in show("logs", "digits", "0")
    assert "epochs.parquet" in show("export", "digits", "--to", str(finished / "out"))
    assert "not running" in show("stop", "digits")


@pytest.mark.slow
def test_a_folder_of_photos_with_a_corrupt_one_is_searched(tmp_path: Path, photo_folder: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    torn = photos / "flower" / "003.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    settings = ["data.max_corrupt=0.05", "data.image_size=32", "max_epochs=2", "budget.trials=3", "data.batch_size=16"]
    done = cvtune("run", str(photos), *(part for s in settings for part in ("--set", s)), tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "flower/003.jpg" in done.stdout
    study = tmp_path / "studies" / "photos"
    check(study, 0)
    provenance = json.loads((study / "study.json").read_text())["provenance"]
    assert len(provenance["corrupt"]) == 1 and sum(provenance["images"].values()) == 59


@pytest.mark.slow
def test_a_warm_start_tries_the_older_studys_best_recipes_first_and_can_be_resumed(finished: Path) -> None:
    line = ["run", "digits", *QUICK, "--name", "warm", "--warm-start", "digits"]
    first = cvtune(*line, "--set", "budget.trials=2", "--set", "searcher.name=tpe", tmp=finished)
    assert first.returncode == 0, first.stderr
    older, warm = load(finished / "studies" / "digits"), check(finished / "studies" / "warm", 0)
    settings = read(finished / "studies" / "digits" / "study.json")
    best = [record.values for record, _ in older.ranked(settings)]
    assert [record.values for record in warm.of("search")] == best[:2]
    again = cvtune(*line, "--set", "budget.trials=3", "--set", "searcher.name=tpe", tmp=finished)
    assert again.returncode == 0, again.stderr
    assert check(finished / "studies" / "warm", 0).of("search")[2].values == best[2]


def start(*arguments: str, tmp: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("run", "digits", *QUICK, *arguments, tmp=tmp),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp,
    )


def wait_for_epochs(tmp: Path, count: int) -> None:
    """Until the journal holds that many epochs."""
    study, until = tmp / "studies" / "digits", time.monotonic() + 600
    while time.monotonic() < until:
        if (study / "journal").exists() and sum(len(r.epochs) for r in load(study).trials.values()) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("no epochs in time")


IN_TURN = ["--set", "budget.trials=6", "--set", "resources.max_concurrent=1"]  # one at a time: one order of reports


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study as the interrupted ones, run in one go."""
    tmp = tmp_path_factory.mktemp("whole")
    assert cvtune("run", "digits", *QUICK, *IN_TURN, tmp=tmp).returncode == 0
    return tmp


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(None, 75, marks=pytest.mark.long),  # by `cvtune stop`
    ],
)
def test_an_ended_driver_is_taken_up_again_and_decides_the_same(
    tmp_path: Path, uninterrupted: Path, number: signal.Signals | None, code: int
) -> None:
    driver = start(*IN_TURN, tmp=tmp_path)
    wait_for_epochs(tmp_path, 4)
    if number is None:
        line = [sys.executable, "-m", "cvtune.cli", "stop", "digits", "--storage", str(tmp_path / "studies")]
        assert subprocess.run(line, check=False, cwd=tmp_path).returncode == 0
    else:
        driver.send_signal(number)
    if number == signal.SIGTERM:
        time.sleep(0.3)
        driver.send_signal(signal.SIGTERM)  # launch scripts and batch systems repeat it
    driver.communicate(timeout=300)
    assert driver.returncode == code
    check(tmp_path / "studies" / "digits", code)
    resumed = cvtune("run", "digits", *QUICK, *IN_TURN, tmp=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    study = tmp_path / "studies" / "digits"
    check(study, 0)
    assert rows(study) == rows(uninterrupted / "studies" / "digits")


def rows(study: Path) -> list[tuple[float, ...]]:
    """The epochs of a study without times."""
    columns = ["trial", "step", "train_loss", "val_loss", "val_accuracy", "optim.lr"]
    table = pq.read_table(study / "tables" / "epochs.parquet", columns=columns)
    return sorted(tuple(row.values()) for row in table.to_pylist())


@pytest.mark.long
def test_a_killed_worker_is_retried_from_its_checkpoint_and_two_drivers_exclude_each_other(tmp_path: Path) -> None:
    driver = start("--set", "budget.trials=2", "--set", "max_epochs=20", "--set", "scheduler.name=fifo", tmp=tmp_path)
    wait_for_epochs(tmp_path, 6)
    second = cvtune(
        "run",
        "digits",
        *QUICK,
        "--set",
        "budget.trials=2",
        "--set",
        "max_epochs=20",
        "--set",
        "scheduler.name=fifo",
        tmp=tmp_path,
    )
    assert second.returncode == 5 and "cvtune stop" in second.stderr, second.stderr
    study = tmp_path / "studies" / "digits"
    events = [
        json.loads(line) for path in (study / "journal").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    victim = next(e["pid"] for e in events if e["kind"] == "segment")
    assert any("ray::" in part for part in psutil.Process(victim).cmdline())
    os.kill(victim, signal.SIGKILL)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    check(study, 0)
    trials = pq.read_table(study / "tables" / "trials.parquet").to_pylist()
    assert {t["reason"] for t in trials} == {"completed"} and max(t["attempts"] for t in trials) == 2
    assert "retry" in pq.read_table(study / "tables" / "decisions.parquet")["action"].to_pylist()


FAILING = '''
import torch

calls = 0


def loss(logits, target, recipe):
    """Fails for half of the learning rates, and only after the check before the first trial."""
    global calls
    calls += 1
    if calls > 12 and recipe.optim.lr > 2e-3:
        raise ValueError("a bug of the user")
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")
'''


@pytest.mark.slow
def test_a_trials_own_error_ends_that_trial_with_its_reason_and_no_retry(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    done = cvtune(
        "run", "digits", *QUICK, "--set", "budget.trials=6", "--set", "loss.name=python:failing:loss", tmp=tmp_path
    )
    assert done.returncode == 0, done.stderr
    trials = pq.read_table(tmp_path / "studies" / "digits" / "tables" / "trials.parquet").to_pylist()
    failed = [t for t in trials if t["reason"] == "code_error"]
    assert 0 < len(failed) < 6 and all(t["optim.lr"] > 2e-3 for t in failed)
    assert all("a bug of the user" in t["message"] and "failing.py, line" in t["message"] for t in failed)
    assert all(t["attempts"] <= 1 for t in failed)
    assert "code_error" in done.stdout
    (tmp_path / "failing.py").write_text(FAILING.replace("2e-3", "3e-3"))
    changed = cvtune(
        "run", "digits", *QUICK, "--set", "budget.trials=9", "--set", "loss.name=python:failing:loss", tmp=tmp_path
    )
    assert changed.returncode == 2 and "user code changed" in changed.stderr


@pytest.mark.slow
def test_a_time_budget_ends_a_study_in_mid_epoch_with_its_reason(tmp_path: Path) -> None:
    done = cvtune("run", "digits", *QUICK, "--set", "max_epochs=5000", "--set", "budget.time_s=25", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    trials = pq.read_table(tmp_path / "studies" / "digits" / "tables" / "trials.parquet").to_pylist()
    assert "stopped_budget" in {t["reason"] for t in trials} and any("budget.time_s" in t["message"] for t in trials)


DEADLY = """
import os, pathlib, signal, torch
from cvtune import actor

new_attempt, mark = actor._new_attempt, pathlib.Path(__file__).with_name("was_killed")


def killed(trial):
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return new_attempt(trial)


actor._new_attempt = killed  # this module is imported by a process's first trial, so that the next one meets it


def loss(logits, target, recipe):
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")
"""


@pytest.mark.long
def test_a_process_that_dies_when_it_is_handed_to_its_next_trial_costs_no_trial(tmp_path: Path) -> None:
    """Ray Tune tells of it twice, gives the trial up the second time, and would not start it again either."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    settings = ["loss.name=python:deadly:loss", "budget.trials=3", "resources.max_concurrent=1", "resources.retries=1"]
    settings += ["scheduler.name=fifo"]  # whatever is drawn, a trial that is not lost ends by itself
    done = cvtune("run", "digits", *QUICK, *(part for s in settings for part in ("--set", s)), tmp=tmp_path)
    assert done.returncode == 0 and (tmp_path / "was_killed").exists(), done.stderr
    history = check(tmp_path / "studies" / "digits", 0)
    assert [record.reason for record in history.trials.values()] == 3 * ["completed"]


HANGING = """
import multiprocessing, time, torch
import albumentations as A


def loss(logits, target, recipe):
    if len(target) == 64:  # not in the check before the first trial
        time.sleep(1000)
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


class Stuck(A.ImageOnlyTransform):
    passed = 0

    def apply(self, img, **params):
        Stuck.passed += multiprocessing.parent_process() is not None
        while Stuck.passed > 400:
            time.sleep(1)
        return img


def policy(strength, image_size):
    return A.Compose([Stuck(p=1), A.Resize(image_size, image_size)])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "hang_s"),
    [
        ("loss.name=python:hanging:loss", 8),
        # A loader's process imports torch and albumentations before its first batch: longer, on a busy machine.
        pytest.param("augment.policy=python:hanging:policy", 20, marks=pytest.mark.long),
    ],
)
def test_a_trial_without_progress_is_ended_taken_up_once_and_called_hung(
    tmp_path: Path, where: str, hang_s: int
) -> None:
    """In its own process or in the loader's, which would keep the connection to Ray open."""
    (tmp_path / "hanging.py").write_text(HANGING)
    settings = [where, "budget.trials=1", f"resources.hang_s={hang_s}", "resources.cpu=2"]
    done = cvtune("run", "digits", *QUICK, *(part for s in settings for part in ("--set", s)), tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "studies" / "digits"
    (record,) = check(study, 0).trials.values()
    assert record.reason == "hung"
    attempts = sorted(p.name for p in (study / "trials" / record.trial).iterdir())
    assert attempts == ["1", "2"]
    stood = "hanging.py" if "loss" in where else "loader.py"
    assert stood in (study / "trials" / record.trial / "2" / "log.txt").read_text()
