"""Study: setting values by name, loading, and its JSON."""

import json
from pathlib import Path

import pytest

from cvtune.errors import ConfigError
from cvtune.recipe import FIELDS
from cvtune.schedulers import ASHA, FIFO
from cvtune.space import Choice, space
from cvtune.study import SETTINGS, SWEET_SPOT, Study, for_data, load, make, parse_assignment

DIGITS = for_data("digits")


def test_a_study_survives_its_json() -> None:
    content = json.loads(DIGITS.to_json({"versions": {}}))
    assert make(content["study"]) == DIGITS
    assert content["format"] == 1


def test_recipe_names_and_study_names_do_not_collide() -> None:
    assert not set(SETTINGS) & set(FIELDS)


def test_setting_a_searched_name_takes_it_out_of_the_space() -> None:
    changed = DIGITS.set({"optim.lr": 0.1, "budget.trials": 3, "data.source": "x", "objective": "val_loss"})
    assert set(changed.space.domains) == set(SWEET_SPOT.domains) - {"optim.lr"}
    assert (changed.recipe.optim.lr, changed.budget.trials, changed.data.source, changed.better) == (0.1, 3, "x", "min")


def test_the_scheduler_is_set_by_name_and_by_field() -> None:
    assert DIGITS.set({"scheduler.name": "fifo"}).scheduler == FIFO()
    assert DIGITS.set({"scheduler.grace_epochs": 2}).scheduler == ASHA(grace_epochs=2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget.trails": 3}, "Did you mean 'budget.trials'"),
        ({"optim.lrr": 3}, "Did you mean 'optim.lr'"),
        ({"scheduler.name": "asah"}, "'fifo', 'asha'"),
        ({"budget.trials": -1}, "budget.trials = -1"),
        ({"limits.parametres": 5}, "Did you mean 'parameters'"),
        ({"objective": "val_acc"}, "Did you mean 'val_accuracy'"),
        ({"objective": "val_loss", "mode": "max"}, "better the other way"),
        ({"name": "a/b"}, "letters, digits"),
        ({"max_epochs": 2, "scheduler.grace_epochs": 3}, "above max_epochs"),
    ],
)
def test_wrong_settings_say_what_is_valid(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DIGITS.set(values)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=true", True),
        ("a=null", None),
        ("a=None", None),
        ("a=sgd", "sgd"),
        ("a=x=y", "x=y"),
        ('a="1"', "1"),
        ("a=[1,2]", [1, 2]),
    ],
)
def test_assignments_from_the_command_line(text: str, value: object) -> None:
    assert parse_assignment(text) == ("a", value)


def test_an_assignment_needs_an_equals_sign() -> None:
    with pytest.raises(ConfigError, match="path=value"):
        parse_assignment("optim.lr")


def test_trials_differ_in_seed_and_are_reproducible() -> None:
    seeds = [DIGITS.trial(i, {}).seed for i in range(50)]
    assert len(set(seeds)) == 50
    assert seeds == [DIGITS.trial(i, {}).seed for i in range(50)]
    assert DIGITS.trial(0, {"seed": 7}).seed == 7
    assert DIGITS.set({"seed": 1}).trial(0, {}).seed != seeds[0]


def test_random_search_gives_each_index_its_point() -> None:
    points = [DIGITS.searcher.suggest(DIGITS.space, 0, i) for i in range(5)]
    assert points[3] == DIGITS.searcher.suggest(DIGITS.space, 0, 3)
    assert len({p["optim.lr"] for p in points}) == 5
    assert points[0] != DIGITS.searcher.suggest(DIGITS.space, 1, 0)


def test_user_code_is_found_wherever_it_is_named() -> None:
    study = Study(space=space({"loss.name": Choice("cross_entropy", "python:a:b")})).set({"data.source": "python:c:d"})
    assert study.user_code == ("python:a:b", "python:c:d")


def test_a_folder_becomes_the_built_in_study(photo_folder: Path) -> None:
    study = load(str(photo_folder))
    assert study.name == "buildings_and_flowers"
    assert set(study.space.domains) == {"augment.strength", "regularize.strength", "optim.lr"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def study():\n    return 3\n", "returns a cvtune Study"),
        ("x = 1\n", "returns a cvtune Study"),
        ("def study():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("import no_such_module_xyz\n", "no_such_module_xyz"),
        ("from cvtune import *\ndef study():\n    return Study(nmae='x')\n", "nmae"),
        (
            "from cvtune import *\ndef study():\n    return Study(space=space({'optim.lr': Uniform(1, 0)}))\n",
            "upside down",
        ),
    ],
)
def test_a_workflow_that_cannot_be_read_says_why(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load(str(path))
    assert "broken.py" in str(error.value)


def test_a_workflow_that_is_not_there_names_its_neighbor(tmp_path: Path) -> None:
    (tmp_path / "quickstart.py").write_text("")
    with pytest.raises(ConfigError, match=r"Did you mean 'quickstart.py'"):
        load(str(tmp_path / "quikstart.py"))


@pytest.mark.parametrize("content", ["", "{}", '{"format": 99, "study": {}}', "[1]"])
def test_a_study_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "study.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"study.json"):
        load(str(path))


def test_classes_are_mapped_from_the_command_line() -> None:
    name, value = parse_assignment('data.classes={"cardboard": "paper", "trash": null}')
    changed = DIGITS.set({name: value, "data.masks": "masks3"})
    assert changed.data.classes == {"cardboard": "paper", "trash": None}
    assert changed.data.masks == "masks3"
    assert make(json.loads(changed.to_json({}))["study"]) == changed
    for wrong in ({"a": 3}, "paper"):
        with pytest.raises(ConfigError, match=r"data\.classes"):
            DIGITS.set({"data.classes": wrong})
    with pytest.raises(ConfigError, match=r"Did you mean 'data\.classes'"):
        DIGITS.set({"data.clases": {}})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_is_a_target(tmp_path: Path, suffix: str) -> None:
    study = load(str(tmp_path / f"my list{suffix}"))
    assert study.data.source.endswith(f"my list{suffix}")
    (tmp_path / "my list.csv").write_text("path,label\n")
    assert load(str(tmp_path / "my list.csv")).name == "my-list"


def test_images_with_masks_get_a_model_that_segments(tmp_path: Path) -> None:
    for folder in ("d/images", "d/masks", "e/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a.csv").write_text('\ufeffpath,"mask",split\n')
    (tmp_path / "b.csv").write_text("path,label\nmask,mask\n")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe")
    recipes = {name: load(str(tmp_path / name)).recipe for name in ("d", "e", "a.csv", "b.csv", "c.csv")}
    assert {name for name, recipe in recipes.items() if recipe.model.name == "small_unet"} == {"d", "a.csv"}
    assert {name for name, recipe in recipes.items() if recipe.data.batch_size == 8} == {"d", "a.csv"}
    assert load(str(tmp_path / "d")).recipe.augment.flip == "horizontal"


@pytest.mark.parametrize(("name", "off"), [("confirm", r"Confirm\(top=0\)"), ("tracking", r'Tracking\(mode="off"\)')])
def test_none_where_something_is_switched_off(name: str, off: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = None: write {off} to switch it off"):
        Study(**{name: None})
