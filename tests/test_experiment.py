"""Experiments of advice: what is trained, in which order, what is fixed beforehand, and what is made of the scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cvtune.advise import changed, load
from cvtune.cli import app
from cvtune.errors import ConfigError, CvtuneError
from cvtune.event import Event
from cvtune.experiment import advise, images_of, verdicts
from cvtune.history import History, TrialRecord
from cvtune.rule import Rule
from cvtune.sections import Source
from cvtune.space import LogUniform, space
from cvtune.study import Study
from cvtune.verdict import NONE, SUPPORTED, UNTESTABLE

WORKFLOWS = Path(__file__).parents[1] / "workflows" / "advice"
FILES = sorted(path for path in WORKFLOWS.glob("*.py") if path.name != "advice_base.py")
RATES = space({"optim.lr": LogUniform(1e-3, 1e-1)})


def a_rule(**fields: Any) -> Rule:
    arms = {"weak": {"augment.strength": 0.1}, "strong": {"augment.strength": 0.7}}
    chosen = {"arms": arms, "contrast": {"strong": 1, "weak": -1}, "tuned": {"strong": RATES}, "units": 3}
    return Rule(**{"name": "stronger", "says": "Strong beats weak.", **chosen, **fields})


class Toy:
    """Trains nothing: the best rate is 0.02, and the strong arm is better by `gain`."""

    def __init__(self, gain: float, same_images: bool = False) -> None:
        self.gain, self.same_images, self.ran = gain, same_images, []  # type: ignore[var-annotated]

    def __call__(self, study: Study, storage: Path) -> tuple[Path, History]:
        self.ran.append(study)
        folder, history = storage / study.name, History()
        (folder / "best").mkdir(parents=True, exist_ok=True)
        seed = 0 if self.same_images else study.data.split_seed
        (folder / "study.json").write_text(study.to_json({"data_fingerprint": f"images {seed}"}))
        if study.candidates:
            means = {arm: 0.5 + self.gain * (arm == "strong") * (1 + seed / 10) for arm in study.candidates}
            recipes = [{"label": arm, "mean": mean} for arm, mean in means.items()]
            (folder / "best" / "comparison.json").write_text(json.dumps({"recipes": recipes}))
        else:
            for index, (rate, score) in enumerate(((0.02, 0.8), (0.08, 0.6))):
                name, values = f"{index:05d}", {"optim.lr": rate}
                record = TrialRecord(name, index, "search", "", values, study.trial(index, values), 0.0)
                record.epochs.append(Event({"epoch": 1, "step": 1, "val_accuracy": score}))
                history.trials[name] = record
        return folder, history


def test_arms_are_tuned_then_compared_on_fresh_splits(tmp_path: Path) -> None:
    rule, toy = a_rule(study=Study(objective="val_accuracy")), Toy(0.1)
    evidence = advise(rule, tmp_path, toy, lambda line: None)
    tuning, *units = toy.ran
    assert tuning.name.startswith("tune-strong-") and tuning.recipe.augment.strength == 0.7 and not tuning.candidates
    assert [unit.data.split_seed for unit in units] == [1, 2, 3] and len({unit.recipe.seed for unit in units}) == 3
    for unit in units:
        assert unit.budget.trials == 0 and unit.confirm.seeds == rule.seeds
        assert unit.candidates["strong"].optim.lr == 0.02, "as tuned"
        assert unit.candidates["weak"].optim.lr == rule.study.recipe.optim.lr, "this arm is not tuned"
    assert evidence.contrasts == pytest.approx((0.11, 0.12, 0.13)) and not evidence.note
    assert verdicts(tmp_path)[0].claim == SUPPORTED
    plan = json.loads((tmp_path / "stronger" / "plan.json").read_text())
    assert plan["digest"] == rule.digest and all(rule.digest[:8] in study.name for study in toy.ran)


def test_images_with_a_split_of_their_own_restrict_what_is_said(tmp_path: Path) -> None:
    advise(a_rule(tuned={}), tmp_path, Toy(0.0, same_images=True), lambda line: None)
    (verdict,) = verdicts(tmp_path)
    assert verdict.claim == NONE and "all units share it" in verdict.sentence()


def test_what_is_compared_cannot_change_once_it_is_planned(tmp_path: Path) -> None:
    advise(a_rule(tuned={}), tmp_path, Toy(0.1), lambda line: None)
    for other in ({"relevant": 0.01}, {"units": 9}, {"max_epochs": 7}, {"objective": "val_loss"}):
        with pytest.raises(ConfigError, match=r"was planned otherwise .*fixed before the first trial"):
            advise(changed(a_rule(tuned={}), other), tmp_path, Toy(0.1), lambda line: None)


def test_a_storage_folder_holds_the_rules_of_one_data_set(tmp_path: Path) -> None:
    here = changed(a_rule(tuned={}), {"data.source": "here"})
    advise(here, tmp_path, Toy(0.1), lambda line: None, "1a")
    advise(here, tmp_path, Toy(0.1), lambda line: None, "1a")
    with pytest.raises(ConfigError, match=r"rule 'stronger' was begun on other images: those of 'here' .* --storage"):
        advise(here, tmp_path, Toy(0.1), lambda line: None, "2b")
    for name in ("stronger", "another"):
        other = changed(a_rule(tuned={}, name=name), {"data.source": "elsewhere"})
        with pytest.raises(
            ConfigError, match=r"rule 'stronger' was planned here for .* 'here', and now .* 'elsewhere'"
        ):
            advise(other, tmp_path, Toy(0.1), lambda line: None)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_study_that_was_planned_may_lie_beside_the_rules(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "plan.json").write_text('{"format": 1, "cost": {}}')  # of `cvtune plan`
    assert advise(a_rule(tuned={}), tmp_path, Toy(0.1), lambda line: None).contrasts


def test_images_are_told_apart_by_what_they_hold_not_by_where_they_lie(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    for name, shift in (("a", 0), ("b", 0), ("c", 1)):
        np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=(np.arange(40) + shift) % 2)
    a, b, c = (images_of(Source(source=str(tmp_path / f"{name}.npz")), tmp_path / "cache") for name in "abc")
    assert a == b != c


def test_what_was_shown_lies_beside_the_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvtune.experiment.through_ray", lambda *_: Toy(0.1))
    monkeypatch.chdir(tmp_path)
    weak = str(WORKFLOWS / "complex_images.py")
    assert CliRunner().invoke(app, ["advise", "digits", weak]).exit_code == 0
    assert "not testable here" in (tmp_path / "advice" / "verdicts.md").read_text()
    assert not (tmp_path / "advice" / "verdicts.png").exists(), "nothing was tested"
    rule = a_rule(study=Study(objective="val_accuracy"))
    advise(changed(rule, {"data.source": "digits"}), tmp_path / "advice", Toy(0.1), lambda line: None)
    done = CliRunner().invoke(app, ["advise", "digits", weak])
    assert done.exit_code == 0 and "verdicts.png: the plot" in done.output
    told = (tmp_path / "advice" / "verdicts.md").read_text()
    assert "| stronger | supported | +0.1200" in told and "| strong | optim.lr 0.02 | 0.6200 |" in told


def test_an_arm_without_a_score_is_an_error(tmp_path: Path) -> None:
    class Failing(Toy):
        def __call__(self, study: Study, storage: Path) -> tuple[Path, History]:
            folder, history = super().__call__(study, storage)
            (folder / "best" / "comparison.json").unlink()
            return folder, history

    with pytest.raises(CvtuneError, match="arm 'weak' has no test score"):
        advise(a_rule(tuned={}), tmp_path, Failing(0.1), lambda line: None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contrast": {"strong": 1}}, "add up to 0"),
        ({"contrast": {"strong": 1, "week": -1}}, "'week' is no arm. Did you mean 'weak'"),
        ({"arms": {}, "contrast": {}, "tuned": {}}, "give arms that test it"),
        ({"arms": {"a b": {}}, "contrast": {}, "tuned": {}}, "begin with a letter"),
        ({"name": "../x"}, "begin with a letter"),
        ({"arms": {"weak": {"augment.strenght": 0.1}, "strong": {}}}, "augment.strenght"),
    ],
)
def test_a_rule_that_cannot_be_tested_as_written(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        a_rule(**fields)


def test_what_an_arm_sets_cannot_be_set_for_all() -> None:
    with pytest.raises(ConfigError, match=r"augment\.strength cannot be set: it is what the arms .* differ in"):
        changed(a_rule(), {"augment.strength": 0.5})
    assert changed(a_rule(), {"units": 7, "max_epochs": 3}).units == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rules_that_are_shipped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CVTUNE_WEIGHTS", raising=False)
    rule = load(path)
    assert rule.name == path.stem and f"workflows/advice/{path.name}" in path.read_text()
    assert rule.untestable or set(rule.contrast) == set(rule.arms)


def test_the_rule_about_weights_is_testable_with_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CVTUNE_WEIGHTS", "torchvision")
    assert load(WORKFLOWS / "fine_tuning_rate.py").arms["tuned-slow"]["model.pretrained"] == "torchvision"
    monkeypatch.delenv("CVTUNE_WEIGHTS")
    advise(load(WORKFLOWS / "fine_tuning_rate.py"), tmp_path, Toy(0.0), lambda line: None)
    assert verdicts(tmp_path)[0].claim == UNTESTABLE


def test_a_file_that_gives_no_rule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'l1\.py'"):
        load(WORKFLOWS / "l2.py")
    (tmp_path / "no.py").write_text("def study(): ...")
    with pytest.raises(ConfigError, match=r"needs a function `rule\(\)`"):
        load(tmp_path / "no.py")
    (tmp_path / "bad.py").write_text("def rule(): return 1 / 0")
    with pytest.raises(ConfigError, match="building the rule failed: ZeroDivisionError"):
        load(tmp_path / "bad.py")
    with pytest.raises(ConfigError, match="no rule was tested here"):
        verdicts(tmp_path)


RULE = """
from cvtune import Budget, FIFO, LogUniform, Recipe, Study, space
from cvtune.rule import Rule

def rule():
    small = {"data.image_size": 8, "max_epochs": 1, "data.train_fraction": 0.3}
    return Rule(
        name="wider", says="Wider is better.",
        study=Study(recipe=Recipe().replace(small), scheduler=FIFO(), budget=Budget(trials=2)),
        arms={"narrow": {"model.width": 4}, "wide": {"model.width": 8}},
        contrast={"wide": 1, "narrow": -1},
        tuned={"wide": space({"optim.lr": LogUniform(1e-3, 1e-1)})},
        units=2,
    )
"""


@pytest.mark.long
def test_a_rule_is_tested_through_ray_and_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "wider.py").write_text(RULE)
    command = [sys.executable, "-m", "cvtune.cli", "advise", "digits", "wider.py", "--cache", "cache"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CVTUNE_"))}
    done = [subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True) for _ in range(2)]
    assert [run.returncode for run in done] == [0, 0], done[0].stdout[-3000:] + done[0].stderr[-3000:]
    assert all("2 units" in run.stdout for run in done)
    assert len(list((tmp_path / "advice" / "wider").glob("*/study.json"))) == 3
    assert "epoch" in done[0].stdout and "epoch" not in done[1].stdout, "what was done is not done again"
    (verdict,) = verdicts(tmp_path / "advice")
    assert len(verdict.evidence.contrasts) == 2 and not verdict.evidence.note
