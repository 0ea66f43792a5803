"""A trial that several processes train together: here two of them on CPUs, by gloo."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cvtune import crew
from cvtune.actor import OPENED, TrialActor, processes, reason_of
from cvtune.data import open_dataset
from cvtune.errors import ConfigError, DataError
from cvtune.study import for_data
from cvtune.team import ALONE, Team

STUDY = for_data("digits").set(
    {
        "data.image_size": 16,
        "data.batch_size": 33,  # rows do not divide evenly, and the last batch is small
        "data.report_images": 100,
        "model.width": 4,
        "model.norm": "group",  # batch norm would see other rows
        "regularize.strength": 0.0,
        "augment.mixup": 0.4,
        "optim.ema": 0.9,
        "optim.lr": 3e-4,  # at the usual rate the difference of rounding grows a thousandfold in three reports
        "max_epochs": 4,
    }
)
COMPARED = ("train_loss", "train_accuracy", "grad_norm", "val_loss", "val_accuracy", "clean_loss", "weight_norm")


def config(tmp: Path, name: str, gpu: int, **changes: Any) -> dict[str, Any]:
    """What the process of a trial is told; without GPUs `gpu` processes train on CPUs."""
    data = open_dataset(STUDY.data, STUDY.recipe.data, tmp / "cache", None, 1)
    return {
        "study": str(tmp / "study"),
        "trial": name,
        "recipe": STUDY.recipe.replace(changes).model_dump(mode="json", exclude_defaults=True),
        "base": STUDY.recipe.model_dump(mode="json", exclude_defaults=True),
        "known_step": 0,
        "source": STUDY.data.model_dump(mode="json"),
        "cache": str(tmp / "cache"),
        "cache_bytes": None,
        "store": str(data.store),
        "fingerprint": data.fingerprint,
        "roots": (),
        "folders": {},
        "cwd": str(Path.cwd()),
        "cpu": 1,
        "on_gpu": {},
        "mps": False,
        "gpu": gpu,
        "widens": False,
        "strip": 0,
        "deadline": None,
        "halt": str(tmp / "halt"),
        "hang_s": 600,
        "exploit": None,
    }


def started(told: dict[str, Any]) -> TrialActor:
    made = TrialActor.__new__(TrialActor)  # without Ray's own set-up of folders and loggers
    made.setup(told)
    return made


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    OPENED.clear()
    return tmp_path_factory.mktemp("team")


@pytest.fixture
def two(tmp: Path) -> Iterator[TrialActor]:
    """A process that trains trial `two` with a second one beside it."""
    threads = torch.get_num_threads()
    actor = started(config(tmp, "two", 2))
    yield actor
    actor.cleanup()
    torch.set_num_threads(threads)


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in COMPARED:
        assert one[name] == pytest.approx(other[name], rel=2e-4, abs=1e-6), name


def others() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "cvtune.follow" in " ".join(p.cmdline())]


def test_two_processes_report_what_one_does_and_the_scheduler_may_do_anything(two: TrialActor, tmp: Path) -> None:
    alone = started(config(tmp, "one", 1))
    expected = [alone.step() for _ in range(3)]
    alone.cleanup()
    first, second = two.step(), two.step()
    alike(first, expected[0])
    alike(second, expected[1])
    assert len(others()) == 1

    two.reset_config({**config(tmp, "two", 2), "known_step": 1})  # stopped after a report, and taken up an epoch before
    again = two.step()
    assert again["step"] == 2 and again["val_loss"] == second["val_loss"]  # the report that the driver missed
    alike(two.step(), expected[2])

    exploit = {"donor": "two", "donor_step": 3, "step": 1, "attempt": 0}
    two.reset_config({**config(tmp, "clone", 2, **{"optim.lr": 1e-4}), "known_step": 1, "exploit": exploit})
    clone = two.step()
    assert (clone["step"], clone["epoch"]) == (2, 4)  # with the donor's weights, by its own count

    Path(tmp / "halt").touch()  # an orderly end in the middle of an epoch
    two.reset_config(config(tmp, "halted", 2))
    assert two.step()["cut"] == "halt"
    Path(tmp / "halt").unlink()
    two.reset_config(config(tmp, "after", 2))
    assert two.step()["step"] == 1
    assert len(others()) == 1  # one and the same for all of these trials
    two.reset_config(config(tmp, "single", 1))
    assert two.step()["step"] == 1  # trained by this process alone


@pytest.mark.parametrize(
    ("reason", "kind"), [("oom_gpu", torch.OutOfMemoryError), ("oom_host", MemoryError), ("data_error", DataError)]
)
def test_another_process_leaves_word_of_why_it_ends(tmp_path: Path, reason: str, kind: type[Exception]) -> None:
    crew.tell(tmp_path, 1, reason, "so")
    found = crew.said(tmp_path, 1)
    assert type(found) is kind and reason_of(found) == reason and str(found) == "process 1 of the trial: so"
    assert isinstance(crew.said(tmp_path, 2), crew.ProcessLost)


@pytest.mark.long
def test_what_another_process_says_is_the_trials_own_reason(tmp: Path) -> None:
    """The second process finds no such function, while the first waits for it; then nothing is left of either."""
    actor = started(config(tmp, "bad", 2, **{"model.name": "python:nowhere:model"}))
    result = actor.step()
    assert result["failure"] == "code_error" and "nowhere" in result["message"]
    assert not others()
    actor.cleanup()


@pytest.mark.long
def test_a_process_that_is_killed_is_a_loss_and_not_the_trials_fault(tmp: Path) -> None:
    actor = started(config(tmp, "killed", 2))
    assert actor.step()["step"] == 1
    others()[0].kill()
    with pytest.raises(crew.ProcessLost, match="process 1 of the trial was lost"):
        actor.step()
    assert not others()
    actor.cleanup()


@pytest.mark.long
def test_nothing_outlives_a_process_that_is_killed(tmp: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from tests import test_team as t\n"
    code += (
        f"from pathlib import Path; a = t.started(t.config(Path({str(tmp)!r}), 'orphan', 2)); a.step(); print('up')\n"
    )
    code += "import time; time.sleep(300)"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and "up" in first.stdout.read(3)
    helpers = psutil.Process(first.pid).children()
    assert helpers
    first.kill()
    first.wait()
    assert not psutil.wait_procs(helpers, timeout=120)[1]


@pytest.mark.parametrize(("count", "rows"), [(33, [16, 17]), (4, [2, 2]), (3, [3, 3]), (2, [2, 2])])
def test_a_batch_is_divided_and_too_small_a_one_is_repeated_and_counts_once(count: int, rows: list[int]) -> None:
    teams = [Team(rank, 2) for rank in range(2)]
    assert [len(range(count)[team.rows(count)]) for team in teams] == rows
    counted = [i for team in teams if team.counts(count) for i in range(count)[team.rows(count)]]
    assert sorted(counted) == list(range(count))
    assert ALONE.rows(count) == slice(0, count) and ALONE.counts(count)


def test_a_loop_of_the_users_own_gets_all_gpus_to_itself() -> None:
    assert processes({"gpu": 4, "recipe": {}}) == 4
    assert processes({"gpu": 0.5, "recipe": {}}) == processes({"gpu": 0, "recipe": {}}) == 1
    assert processes({"gpu": 4, "recipe": {"train": {"loop": "python:own:train"}}}) == 1


def test_parts_of_gpus_and_trials_over_folds_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"resources\.gpu = 1\.5 must be a share of a GPU from 0 to 1, a whole number"
    ):
        STUDY.set({"resources.gpu": 1.5})
    with pytest.raises(ConfigError, match="a trial over folds does not span several GPUs"):
        STUDY.set({"resources.gpu": 2, "data.folds": 3})
    assert STUDY.set({"resources.gpu": 2}).resources.gpu == 2
