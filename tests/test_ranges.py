"""The rules: each row can hold, each gives what a study accepts, and the workflow that `cvtune init` writes is one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvtune.cli import app
from cvtune.data.inspect import Copies, Facts
from cvtune.errors import ConfigError, DataError
from cvtune.ranges import RULES, advise, batch_size, image_size, workflow
from cvtune.sections import Source
from cvtune.space import LogUniform, Uniform, space
from cvtune.study import load

NONE = Copies(0, {}, 0, "")
PLAIN = Facts(
    source="photos",
    task="classify",
    classes=("cat", "dog"),
    images={"train": 2400, "val": 300, "test": 300},
    counts={"train": (1200, 1200), "val": (150, 150), "test": (150, 150)},
    shorter=(100, 120, 140),
    longer=(150, 160, 170),
    pixel_bytes=3,
    formats={"JPEG RGB": 3000},
    kinds={"uint8 with 3 channels": 3000},
    broken=(),
    decoded=3000,
    exact=NONE,
    near=NONE,
    blank=0,
    complexity=80.0,
    notices=(),
)
CASES = {
    "plain": PLAIN,
    "large images": replace(PLAIN, shorter=(300, 400, 500)),
    "small images": replace(PLAIN, shorter=(28, 28, 28)),
    "masks": replace(PLAIN, task="segment", counts={"train": (9000, 1000)}),
    "few": replace(PLAIN, images={"train": 200, "val": 30, "test": 30}),
    "many": replace(PLAIN, images={"train": 90_000, "val": 300, "test": 300}),
    "intricate": replace(PLAIN, complexity=150.0),
    "uneven": replace(PLAIN, counts={"train": (2200, 200)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_study_accepts_what_the_rules_give(case: str) -> None:
    advice = advise(CASES[case])
    assert len({one.name for one in advice}) == len(advice)
    domains = {one.name: one.value for one in advice if isinstance(one.value, LogUniform | Uniform)}
    assert {"augment.strength", "regularize.strength", "optim.lr"} <= domains.keys()
    assert set(space(domains).domains) == set(domains)
    assert all(one.reason.endswith(".") and "{" not in one.reason for one in advice)
    lr = domains["optim.lr"]
    assert isinstance(lr, LogUniform) and lr.high / lr.low <= 41  # the built-in range spans 40


def test_every_row_holds_for_some_data_set() -> None:
    reached = {id(rule) for facts in CASES.values() for rule in RULES if rule.when(facts)}
    assert reached == {id(rule) for rule in RULES}


def test_what_a_data_set_is_like_moves_the_ranges() -> None:
    def given(case: str) -> dict[str, str]:
        return {one.name: one.code for one in advise(CASES[case])}

    assert given("plain")["data.image_size"] == "128" and image_size(CASES["small images"]) == 32
    assert given("small images")["augment.strength"] == "Uniform(0, 0.6)"
    assert given("plain")["augment.strength"] == "Uniform(0, 1, likely=(0, 0.6))"
    assert batch_size(CASES["few"]) == 8 and "data.batch_size" not in given("plain")
    assert given("uneven")["data.oversample"] == "Uniform(0, 1)" and "data.oversample" not in given("plain")
    assert given("masks")["loss.class_weight"] == "Uniform(0, 1)"
    assert given("plain")["optim.lr"] == "LogUniform(0.0005, 0.02, likely=(0.002, 0.02))"
    assert given("few")["optim.lr"] == "LogUniform(0.00018, 0.0071, likely=(0.00071, 0.0071))"
    assert given("intricate")["optim.lr"] != given("plain")["optim.lr"]


@pytest.mark.parametrize("case", CASES)
def test_workflow_is_a_study_with_the_ranges(case: str, tmp_path: Path) -> None:
    file = tmp_path / "workflow.py"
    file.write_text(workflow(CASES[case], "workflow.py", Source(source=CASES[case].source, max_corrupt=0.05)))
    assert max(map(len, file.read_text().splitlines())) <= 120
    study = load(str(file))
    for one in advise(CASES[case]):
        if isinstance(one.value, LogUniform | Uniform):
            assert study.space.domains[one.name] == one.value
        else:
            assert study.recipe.flat()[one.name] == one.value
    assert study.data.source == CASES[case].source and study.data.max_corrupt == 0.05
    assert study.recipe.model.name == ("small_unet" if case == "masks" else "small_resnet")


def test_init_writes_down_how_the_images_were_read(photo_folder: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "mine.py"
    shutil.copytree(photo_folder, folder)
    next(folder.glob("*/*.jpg")).write_bytes(b"no image")
    call = ["init", str(folder), "-o", str(file), "--cache", str(tmp_path)]
    refused = CliRunner().invoke(app, call)
    assert isinstance(refused.exception, DataError) and "raise data.max_corrupt above 0.017" in refused.output
    assert CliRunner().invoke(app, [*call, "--set", "data.max_corrupt=0.05"]).exit_code == 0
    assert load(str(file)).data.max_corrupt == 0.05
    for setting in ("max_epochs=3", "data.source=digits"):
        other = CliRunner().invoke(app, ["init", str(folder), "-o", str(tmp_path / "x.py"), "--set", setting])
        assert isinstance(other.exception, ConfigError) and "init asks only how the images are" in str(other.exception)


def test_init_writes_once(photo_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    call = ["init", str(photo_folder), "-o", str(file), "--cache", str(tmp_path)]
    assert CliRunner().invoke(app, call).exit_code == 0
    assert load(str(file)).data.source == str(photo_folder)
    written = file.read_text()
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, ConfigError) and "not overwritten" in str(again.exception)
    assert file.read_text() == written
