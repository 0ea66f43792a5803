"""The process that trains trials, without Ray's: terminal reasons, attempts, what is logged and taken up."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvtune import checkpoint, strips, train
from cvtune.actor import (
    MOST_OPENED,
    OPENED,
    TrialActor,
    TrialFailed,
    opened,
    reason_of,
    score_test,
    settle,
    team_run,
)
from cvtune.data import open_dataset
from cvtune.data.torchvision import data_folder
from cvtune.engine import Setting
from cvtune.errors import ConfigError, DataError, told
from cvtune.on_gpu import OnGpu
from cvtune.preflight import Prepared
from cvtune.recipe import Recipe
from cvtune.study import for_data
from cvtune.team import ALONE

STUDY = for_data("digits").set({"model.width": 4, "max_epochs": 3, "data.train_fraction": 0.3})


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    OPENED.clear()
    data = open_dataset(STUDY.data, STUDY.recipe.data, tmp_path / "cache", None, 1)
    recipe = STUDY.recipe.model_dump(mode="json", exclude_defaults=True)
    return {
        "study": str(tmp_path / "study"),
        "trial": "00000",
        "recipe": recipe,
        "base": recipe,
        "known_step": 0,
        "source": STUDY.data.model_dump(mode="json"),
        "cache": str(tmp_path / "cache"),
        "cache_bytes": None,
        "store": str(data.store),
        "fingerprint": data.fingerprint,
        "roots": (),
        "folders": {},
        "cwd": str(Path.cwd()),
        "cpu": 1,
        "on_gpu": {},
        "mps": False,
        "gpu": 0,
        "widens": False,
        "strip": 4,
        "deadline": None,
        "halt": str(tmp_path / "halt"),
        "hang_s": 600,
        "exploit": None,
    }


@pytest.fixture
def actor(config: dict[str, Any]) -> TrialActor:
    made = TrialActor.__new__(TrialActor)  # without Ray's own set-up of folders and loggers
    threads = torch.get_num_threads()
    made.setup(config)
    yield made
    made.cleanup()
    torch.set_num_threads(threads)


def test_an_epoch_is_saved_before_it_is_reported(actor: TrialActor, config: dict[str, Any]) -> None:
    result = actor.step()
    assert result["step"] == 1 and result["attempt"] == 1 and json.dumps(result)
    folder = Path(config["study"]) / "trials" / "00000"
    _, numbers = checkpoint.load(next(checkpoint.newest(folder)))
    assert numbers["val_accuracy"] == result["val_accuracy"]
    assert "epoch 1: train_loss" in (folder / "1" / "log.txt").read_text()


@pytest.mark.parametrize("loop", [{}, {"train": {"loop": "python:loops_under_test:good"}}, {"data": {"folds": 2}}])
def test_the_workers_of_a_trial_end_before_the_next_one_begins(
    loop: dict[str, Any], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    recipe = {**config["recipe"], **{section: config["recipe"].get(section, {}) | loop[section] for section in loop}}
    terms = {"objective": "val_accuracy", "better": "max", "seed": 0}
    config |= {"cpu": 3, "recipe": recipe, "base": recipe, "folds": terms}
    actor, threads = TrialActor.__new__(TrialActor), torch.get_num_threads()
    try:
        actor.setup(config)
        assert "failure" not in actor.step()
        workers = set(multiprocessing.active_children())
        assert len(workers) == 2
        run = actor._epochs.gi_frame.f_locals["run"]  # type: ignore[attr-defined]
        run.itself = run  # as user code may do it: such a run is left to the garbage collector
        del run
        actor.reset_config({**config, "trial": "00001"})
        assert not workers & set(multiprocessing.active_children())
    finally:
        actor.cleanup()
        torch.set_num_threads(threads)


def test_each_report_leaves_a_strip_of_the_same_images_and_a_full_disk_costs_only_the_strip(
    actor: TrialActor, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.step()
    media = Path(config["study"]) / "trials" / "00000" / "1" / "media"
    width = Image.open(media / "1.png").width
    assert width == 4 * (strips.CELL + 2 * strips.FRAME + strips.GAP)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(strips, "write_whole", full)
    assert actor.step()["step"] == 2
    assert [path.name for path in media.iterdir()] == ["1.png"]
    assert "no strip of step 2" in (media.parent / "log.txt").read_text()


def test_who_finds_a_checkpoint_finds_its_strip(actor: TrialActor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may end at any moment; the next attempt repeats the lost report and draws nothing."""
    saved = checkpoint.save

    def save(place: Path, *arguments: Any) -> None:
        assert (place.parent.parent / "media" / f"{place.name}.png").is_file()
        saved(place, *arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    assert actor.step()["step"] == 1


def test_no_strip_is_drawn_where_none_is_wanted(actor: TrialActor, config: dict[str, Any]) -> None:
    actor.reset_config({**config, "strip": 0})
    assert actor.step()["step"] == 1
    assert not list(Path(config["study"]).rglob("*.png"))


def test_a_new_attempt_goes_on_from_the_last_and_repeats_what_the_driver_missed(
    actor: TrialActor, config: dict[str, Any]
) -> None:
    reports = [actor.step() for _ in range(2)]
    actor.reset_config({**config, "known_step": 1})  # the second report was lost on the way
    again, third = actor.step(), actor.step()
    assert (again["step"], again["val_loss"], again["attempt"]) == (2, reports[1]["val_loss"], 2)
    assert third["step"] == 3
    actor.reset_config({**config, "known_step": 2})
    assert actor.step()["step"] == 3


def test_a_damaged_checkpoint_is_passed_over_and_none_intact_is_no_fresh_start(
    actor: TrialActor, config: dict[str, Any]
) -> None:
    first = [actor.step() for _ in range(2)]
    folder = Path(config["study"]) / "trials" / "00000"
    newest = next(checkpoint.newest(folder))
    (newest / checkpoint.TENSORS).write_bytes(b"torn")
    actor.reset_config({**config, "known_step": 2})
    assert actor.step()["val_loss"] == first[1]["val_loss"]  # trained again from epoch 1, bit for bit
    for place in checkpoint.newest(folder):
        (place / checkpoint.MANIFEST).write_text("{")
    actor.reset_config({**config, "known_step": 2})
    result = actor.step()
    assert (
        result["failure"] == "data_error"
        and "none" not in result["message"]
        and "not started from scratch" in result["message"]
    )


def test_an_error_is_reported_once_and_then_ends_the_process(actor: TrialActor, config: dict[str, Any]) -> None:
    actor.reset_config({**config, "recipe": {**config["recipe"], "model": {"name": "python:nowhere:model"}}})
    result = actor.step()
    assert result["failure"] == "code_error" and "nowhere" in result["message"]
    with pytest.raises(TrialFailed, match="nowhere"):
        actor.step()


def test_each_image_size_is_opened_once_and_few_are_kept_open(config: dict[str, Any], tmp_path: Path) -> None:
    def at(**values: object) -> Any:
        named = {name.replace("__", "."): value for name, value in values.items()}
        return opened(config, Recipe.model_validate(config["recipe"]).replace(named))

    base = at()
    assert str(base.store) == config["store"]
    assert at(data__batch_size=16, data__micro_batch=8, data__oversample=1.0) is base  # decoded alike
    other = at(data__image_size=24)
    assert other is not base and other.store != base.store and other.fingerprint == base.fingerprint
    grown = at(data__image_size=8, changes=[[1, {"data.image_size": 24}]])
    assert grown is other  # kept for its largest size
    for size in range(25, 35):
        at(data__image_size=size)
    assert len(OPENED) == MOST_OPENED


def test_other_images_than_the_driver_saw_are_refused(actor: TrialActor, config: dict[str, Any]) -> None:
    OPENED.clear()
    actor.reset_config({**config, "fingerprint": "other"})
    result = actor.step()
    assert result["failure"] == "data_error" and "other images" in result["message"]


def test_a_deadline_cuts_the_trial_off(actor: TrialActor, config: dict[str, Any]) -> None:
    actor.reset_config({**config, "deadline": 1.0})
    assert actor.step()["cut"] == "deadline"


def test_a_full_disk_costs_no_trial_and_at_most_one_report_goes_without_its_checkpoint(
    actor: TrialActor, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    actor.reset_config({**config, "recipe": {**config["recipe"], "max_epochs": 5}})
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", full)
        assert actor.step()["step"] == 1
    assert actor.step()["step"] == 2  # there was room again
    monkeypatch.setattr(checkpoint, "save", full)
    assert actor.step()["step"] == 3
    place = Path(config["study"]) / "trials" / "00000" / "2" / "checkpoints" / "4"
    last = actor.step()
    assert (last["cut"], last["file"], "step" in last) == ("full", str(place), False)
    assert actor.step()["cut"] == "halt"


def test_a_storage_that_fails_otherwise_costs_no_trial(actor: TrialActor, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*arguments: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(checkpoint, "save", stale)
    assert [actor.step()["step"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_log_on_a_full_disk_costs_no_trial_and_a_disk_full_for_other_files_is_no_error_of_the_trial(
    actor: TrialActor, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Path(config["study"]) / "trials" / "00000" / "1" / "log.txt"
    log.symlink_to("/dev/full")
    assert actor.step()["step"] == 1
    monkeypatch.setattr(actor, "_epochs", failing(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):  # Ray takes the trial up again
        actor.step()


def failing(error: Exception) -> Iterator[dict[str, Any]]:
    raise error
    yield {}


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("x"), "code_error"),
        (ConfigError("x"), "code_error"),
        (DataError("x"), "data_error"),
        (MemoryError(), "oom_host"),
        (np._core._exceptions._ArrayMemoryError((1,), np.dtype(float)), "oom_host"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom_host"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom_gpu"),
        (caused(ConfigError("x"), torch.OutOfMemoryError("CUDA out of memory")), "oom_gpu"),  # in the user's own code
        (caused(ConfigError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")), "oom_host"),
        (caused(DataError("x"), MemoryError()), "data_error"),
    ],
)
def test_every_error_has_its_reason(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_an_error_is_told_with_the_line_where_it_began() -> None:
    try:
        try:
            int("x")
        except ValueError as inner:
            raise ConfigError("wrapped") from inner
    except ConfigError as error:
        assert told(error).startswith("ConfigError: wrapped (test_actor.py, line ")


def exploit(step: int, donor_step: int, attempt: int = 1) -> dict[str, Any]:
    return {"donor": "00007", "donor_step": donor_step, "step": step, "attempt": attempt}


def test_a_clone_starts_from_its_donors_weights_with_its_own_count_and_the_new_values(
    actor: TrialActor, config: dict[str, Any]
) -> None:
    actor.reset_config({**config, "trial": "00007"})
    donor = [actor.step() for _ in range(2)][-1]
    actor.reset_config(config)
    actor.step()
    recipe = {**config["recipe"], "optim": {"lr": 0.0123}, "regularize": {"dropout": 0.25}, "max_epochs": 4}
    clone = {**config, "recipe": recipe, "known_step": 1, "exploit": exploit(step=1, donor_step=2)}
    actor.reset_config(clone)
    report = actor.step()
    assert (report["step"], report["epoch"], donor["epoch"]) == (2, 3, 2)
    assert report["dropout"] == 0.25 and 0 < report["lr"] <= 0.0123
    actor.reset_config({**clone, "known_step": 2})  # its process died: it goes on from what it saved since
    again = actor.step()
    assert (again["step"], again["epoch"]) == (3, 4)


def test_what_an_old_process_writes_after_an_exploit_is_not_taken_for_the_clones_own(
    actor: TrialActor, config: dict[str, Any]
) -> None:
    actor.reset_config({**config, "trial": "00007"})
    actor.step()
    actor.reset_config(config)
    for _ in range(3):
        actor.step()  # attempt 2 went on to step 3, but the driver saw step 1 only, and then the exploit
    actor.reset_config({**config, "known_step": 1, "exploit": exploit(step=1, donor_step=1, attempt=2)})
    assert actor.step()["epoch"] == 2


def test_a_clone_without_any_donor_fails_and_does_not_start_from_scratch(
    actor: TrialActor, config: dict[str, Any]
) -> None:
    actor.step()
    actor.reset_config({**config, "known_step": 1, "exploit": exploit(step=1, donor_step=1)})
    result = actor.step()
    assert result["failure"] == "data_error" and "donor 00007" in result["message"]


def test_a_halt_file_ends_the_epoch_at_the_next_batch(actor: TrialActor, config: dict[str, Any]) -> None:
    actor.step()
    Path(config["halt"]).touch()
    actor.reset_config({**config, "known_step": 1})
    assert actor.step()["cut"]


def test_a_finished_trial_is_scored_on_the_test_images(actor: TrialActor, config: dict[str, Any]) -> None:
    for _ in range(3):
        actor.step()
    metrics = score_test(config)
    with np.load(Path(config["study"]) / "trials" / "00000" / "test.npz") as content:
        hits = content["probabilities"].argmax(1) == content["labels"]
    assert metrics["test_accuracy"] == pytest.approx(hits.mean()) and len(hits) > 100


def test_a_trial_whose_folder_cannot_be_made_says_so_at_its_first_step(
    actor: TrialActor, config: dict[str, Any], tmp_path: Path
) -> None:
    """A reset that raises would leave Ray with a trial that it neither retries nor ends."""
    (tmp_path / "a file").touch()
    assert actor.reset_config({**config, "study": str(tmp_path / "a file")})
    result = actor.step()
    assert result["failure"] == "code_error" and "a file" in result["message"]


def test_a_worker_of_another_environment_looks_for_published_data_where_the_driver_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = Setting(STUDY, tmp_path / "study", None, ())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CVTUNE_DATA", "shared")
    monkeypatch.delenv("TORCH_HOME", raising=False)
    job = setting.job(Prepared((), {}, "", (), (), "val_accuracy"), tmp_path)
    monkeypatch.chdir("/")
    monkeypatch.setenv("CVTUNE_DATA", "/of/the/node")
    settle(job)
    assert data_folder() == tmp_path / "shared"
    assert "TORCH_HOME" not in os.environ


@pytest.mark.parametrize(("gpu", "shared"), [(0, False), (0.25, True), (1, False), (2, False)])
def test_a_trial_is_told_whether_others_use_its_gpu(
    gpu: float, shared: bool, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(train, "Run", lambda *args, **options: told.update(options))
    team_run({**config, "gpu": gpu, "on_gpu": {"augment": "off"}}, ALONE)
    assert told["on_gpu"] == OnGpu(augment="off", shared=shared)


def test_relative_paths_mean_on_a_node_what_they_mean_to_the_driver(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the working directory of this node's Ray; restored afterwards
    (tmp_path / "driver").mkdir()
    settle({**config, "cwd": str(tmp_path / "driver")})
    assert Path.cwd() == tmp_path / "driver"
    settle({**config, "cwd": str(tmp_path / "only on the head")})
    assert Path.cwd() == tmp_path / "driver"
