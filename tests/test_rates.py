"""The range test: its steps, its smoothing, what it suggests of curves that are known, and the command around it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cvtune import rates
from cvtune.cli import app
from cvtune.data import Dataset, cache_folder, open_dataset
from cvtune.errors import ConfigError
from cvtune.priors import RATES, optimizer_space
from cvtune.recipe import Recipe
from cvtune.sections import Source
from cvtune.study import Study

RECIPE = Recipe().replace({"data.image_size": 8, "model.width": 4, "data.batch_size": 32})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(Source(), RECIPE.data, cache_folder(tmp_path_factory.mktemp("cache")), None, 1)


def curve_of(loss: object) -> rates.Curve:
    tried = np.geomspace(1e-6, 1, 120)
    return rates.Curve("adamw", tuple(tried.tolist()), tuple(loss(tried).tolist()))  # type: ignore[operator]


def test_a_valley_is_found_where_it_is_up_to_what_smoothing_shifts_it() -> None:
    curve = curve_of(lambda lr: 2 - np.exp(-((np.log10(lr) + 2) ** 2)))  # least at 0.01
    found = curve.suggestion()
    assert found.contains(3e-3) and 0.01 <= found.high <= 0.1
    assert found.high / found.low <= rates.SPAN


def test_a_loss_that_falls_nowhere_gives_no_range_but_advice() -> None:
    with pytest.raises(ConfigError, match="fell at no rate"):
        curve_of(lambda lr: 2 + lr).suggestion()


def test_each_step_has_its_own_rate_and_the_loss_first_falls(digits: Dataset) -> None:
    curve = rates.range_test(RECIPE, digits, steps=60, device="cpu")
    ratios = np.diff(np.log(curve.rates))
    assert np.allclose(ratios, ratios[0]) and curve.rates[0] == pytest.approx(RATES["adamw"].low / rates.BELOW)
    assert len(curve.losses) == len(curve.rates) <= 60
    assert min(curve.smoothed) < 0.9 * curve.losses[0]
    assert curve == rates.range_test(RECIPE, digits, steps=60, device="cpu")


def test_the_rates_are_in_force(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = rates.one_pass

    def spy(run: rates.Run, *rest: object) -> object:
        done = real(run, *rest)  # type: ignore[arg-type]
        seen.append(run.stepper.lr)
        assert run.stepper.steps == len(seen)  # one step per pass
        return done

    monkeypatch.setattr(rates, "one_pass", spy)
    curve = rates.range_test(RECIPE, digits, steps=20, device="cpu")
    assert seen == pytest.approx(list(curve.rates))


def test_it_ends_where_the_loss_diverges(digits: Dataset) -> None:
    wild = RECIPE.replace({"optim.name": "sgd", "model.norm": "none", "optim.momentum": 0.99})
    curve = rates.range_test(wild, digits, steps=100, device="cpu")
    assert len(curve.rates) < 100 and (not math.isfinite(curve.losses[-1]) or curve.losses[-1] > curve.losses[0])


def test_every_optimizer_that_a_study_searches_is_tested() -> None:
    assert rates.optimizers(Study()) == ("adamw",)
    assert rates.optimizers(Study(space=optimizer_space(("sgd", "adam")))) == ("sgd", "adam")


def test_own_loops_are_refused(digits: Dataset) -> None:
    with pytest.raises(ConfigError, match="rate of every step"):
        rates.range_test(RECIPE.replace({"train.loop": "python:tests.loops_under_test:plain"}), digits)


def test_command_writes_a_plot_and_a_range_as_code(tmp_path: Path) -> None:
    common = ["--cache", str(tmp_path), "--steps", "60", "-o", str(tmp_path / "lr.png")]
    small = ["--set", "data.image_size=8", "--set", "model.width=4"]
    done = CliRunner().invoke(app, ["lr", "digits", *common, *small])
    assert done.exit_code == 0 and '"optim.lr": LogUniform(' in done.output and "suggested" in done.output
    assert Image.open(tmp_path / "lr.png").width > 500
    told = json.loads(CliRunner().invoke(app, ["lr", "digits", "--json", *common, *small]).stdout)
    assert told["adamw"]["high"] / told["adamw"]["low"] <= 30 and len(told["adamw"]["rates"]) > 20
    wrong = CliRunner().invoke(app, ["lr", "digits", "-o", str(tmp_path / "no" / "lr.png")])
    assert isinstance(wrong.exception, ConfigError) and "folder that exists" in str(wrong.exception)
