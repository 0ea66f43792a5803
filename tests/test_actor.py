"""The process that trains trials, without Ray's: terminal reasons, attempts, what is logged and taken up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvtune import checkpoint
from cvtune.actor import OPENED, TrialActor, TrialFailed, reason_of
from cvtune.data import open_dataset
from cvtune.errors import ConfigError, DataError, told
from cvtune.study import for_data

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
        "cpu": 1,
        "deadline": None,
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


def test_other_images_than_the_driver_saw_are_refused(actor: TrialActor, config: dict[str, Any]) -> None:
    OPENED.clear()
    actor.reset_config({**config, "fingerprint": "other"})
    result = actor.step()
    assert result["failure"] == "data_error" and "other images" in result["message"]


def test_a_deadline_cuts_the_trial_off(actor: TrialActor, config: dict[str, Any]) -> None:
    actor.reset_config({**config, "deadline": 1.0})
    assert actor.step()["cut"] is True


def test_a_full_disk_costs_no_trial(actor: TrialActor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    assert [actor.step()["step"] for _ in range(3)] == [1, 2, 3]


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
