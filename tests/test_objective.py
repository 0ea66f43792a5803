"""What a study compares by when it does not say, and that nothing that runs sees `auto`."""

import json
import shutil
from pathlib import Path

import pytest

from cvtune.epoch import METRICS, OBJECTIVES
from cvtune.errors import ConfigError
from cvtune.objective import AUTO, OF_TASK, choose
from cvtune.preflight import Prepared, prepare
from cvtune.study import Study, for_data, load
from cvtune.study_folder import check_folder, provenance

SMALL = {"data.image_size": 16, "model.width": 4, "confirm.top": 0}


@pytest.mark.parametrize(
    ("images", "chosen"),
    [
        ({"a": 30, "b": 10}, "val_accuracy"),  # 3 : 1 exactly
        ({"a": 31, "b": 10}, "val_balanced_accuracy"),
        ({"a": 100, "b": 100, "c": 20}, "val_balanced_accuracy"),
        ({"a": 10, "b": 10, "none of it": 0}, "val_accuracy"),
    ],
)
def test_imbalance_decides_between_accuracy_and_its_mean_over_classes(images: dict[str, int], chosen: str) -> None:
    name, why = choose("classify", images)
    assert name == chosen and chosen in OBJECTIVES
    assert ("above 3:" in why) == (chosen == "val_balanced_accuracy") and "training images" in why


@pytest.mark.parametrize("task", OF_TASK)
def test_each_task_has_its_metric_as_soon_as_trials_report_it(task: str) -> None:
    """A task whose metric no trial reports yet is compared by accuracy, like any other."""
    name, _ = choose(task, {"a": 10, "b": 10})
    assert name == (OF_TASK[task] if OF_TASK[task] in OBJECTIVES else "val_accuracy")


def test_whatever_auto_becomes_is_better_when_larger() -> None:
    """`Study.better` says so before the images are known."""
    become = {"val_accuracy", "val_balanced_accuracy", *OF_TASK.values()} & set(OBJECTIVES)
    assert {METRICS[name].goal for name in become} == {"max"}
    assert Study().objective == AUTO and Study().better == "max"
    with pytest.raises(ConfigError, match="better the other way"):
        Study(mode="min")
    assert Study(objective="val_loss").settled("val_accuracy").objective == "val_loss"


@pytest.fixture
def few_flowers(photo_folder: Path, tmp_path: Path) -> Path:
    """The folder of photos with 20, 6 and 20 images in its classes."""
    shutil.copytree(photo_folder, tmp_path / "photos")
    for path in sorted((tmp_path / "photos" / "flower").iterdir())[6:]:
        path.unlink()
    return tmp_path / "photos"


def test_the_check_settles_it_from_the_training_images(photo_folder: Path, few_flowers: Path, tmp_path: Path) -> None:
    for folder, chosen in ((photo_folder, "val_accuracy"), (few_flowers, "val_balanced_accuracy")):
        prepared = prepare(for_data(str(folder)).set(SMALL), tmp_path)
        assert (prepared.objective, prepared.left_open) == (chosen, True)
        assert prepared.notices[0].startswith(f"objective = {chosen}: ")
    asked = prepare(for_data(str(few_flowers)).set({**SMALL, "objective": "val_loss"}), tmp_path)
    assert (asked.objective, asked.left_open) == ("val_loss", False)
    assert not any("objective" in notice for notice in asked.notices)


def begin(study: Study, storage: Path, prepared: Prepared) -> None:
    """Leaves the folder as a run does that has begun."""
    (storage / study.name).mkdir(parents=True)
    text = study.settled(prepared.objective).to_json(provenance(prepared, []))
    (storage / study.name / "study.json").write_text(text)


def test_a_study_that_left_it_open_is_taken_up_as_it_was_settled(tmp_path: Path) -> None:
    study = for_data("digits").set(SMALL)
    begin(study, tmp_path, Prepared(("a", "b"), {}, "", (), (), "val_balanced_accuracy", left_open=True))
    folder = tmp_path / study.name
    again, history = check_folder(study, folder, "auto")
    assert again.objective == "val_balanced_accuracy" and not history.trials
    with pytest.raises(ConfigError, match='objective: "val_balanced_accuracy" -> "val_accuracy"'):
        check_folder(study.set({"objective": "val_accuracy"}), folder, "auto")
    assert load(str(folder / "study.json")).objective == "val_balanced_accuracy"


def test_a_study_that_named_it_has_to_name_it_again(tmp_path: Path) -> None:
    study = for_data("digits").set({**SMALL, "objective": "val_loss"})
    begin(study, tmp_path, Prepared(("a", "b"), {}, "", (), (), "val_loss"))
    folder = tmp_path / study.name
    assert check_folder(study, folder, "auto")[0] == study
    with pytest.raises(ConfigError, match='objective: "val_loss" -> "auto"'):
        check_folder(for_data("digits").set(SMALL), folder, "auto")


def test_a_study_from_before_there_was_auto_is_taken_up(tmp_path: Path) -> None:
    study = for_data("digits").set(SMALL)
    begin(study, tmp_path, Prepared(("a", "b"), {}, "", (), (), "val_accuracy"))
    path = tmp_path / study.name / "study.json"
    content = json.loads(path.read_text())
    del content["provenance"]["objective_left_open"]
    path.write_text(json.dumps(content))
    assert check_folder(study, path.parent, "auto")[0].objective == "val_accuracy"
