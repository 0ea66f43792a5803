"""The bundle behind `regularize.strength`: hand-set knobs win, and decay per step does not depend on the rate."""

from __future__ import annotations

import pytest

from cvtune.recipe import Recipe
from cvtune.regularize import BUNDLE, explicit, number, resolve


def recipe(**values: float | None) -> Recipe:
    return Recipe().replace({name.replace("__", "."): value for name, value in values.items()})


def knobs(r: Recipe) -> dict[str, float]:
    return {knob: number(getattr(resolve(r).regularize, knob)) for knob in BUNDLE}


def test_strength_expands_to_the_bundle() -> None:
    assert knobs(recipe(regularize__strength=0.5, optim__lr=0.01)) == pytest.approx(
        {
            "dropout": 0.25,
            "spatial_dropout": 0.1,
            "drop_path": 0.1,
            "label_smoothing": 0.075,
            "weight_decay": 0.025,
            "l2": 0.0,
            "l1": 0.0,
        }
    )


@pytest.mark.parametrize("strength", [0.0, None])
def test_no_strength_is_all_zero(strength: float | None) -> None:
    assert set(knobs(recipe(regularize__strength=strength)).values()) == {0.0}


def test_every_knob_that_strength_sets_is_covered() -> None:
    assert set(BUNDLE) == set(Recipe().regularize.model_dump()) - {"strength"}


@pytest.mark.parametrize("lr", [1e-5, 2e-3, 0.3, 50.0])
def test_rate_times_decay_is_the_same_at_every_rate(lr: float) -> None:
    assert lr * knobs(recipe(regularize__strength=0.7, optim__lr=lr))["weight_decay"] == pytest.approx(1e-3 * 0.49)


@pytest.mark.parametrize("scaling", ["none", "linear", "sqrt"])
def test_rate_times_decay_is_the_same_at_every_batch_size_too(scaling: str) -> None:
    for batch in (16, 64, 512):
        recipe = resolve(
            Recipe().replace({"regularize.strength": 1, "data.batch_size": batch, "optim.lr_scaling": scaling})
        )
        assert recipe.peak_lr * recipe.regularize.weight_decay == pytest.approx(1e-3)
        assert resolve(recipe) == recipe


def test_decay_is_capped_where_the_field_ends() -> None:
    assert knobs(recipe(regularize__strength=1.0, optim__lr=1e-9))["weight_decay"] == 1e4


def test_a_knob_set_by_hand_wins_and_the_others_stay() -> None:
    by_hand = recipe(regularize__strength=1.0, regularize__dropout=0.0, regularize__l1=1e-3)
    assert knobs(by_hand) == {**knobs(recipe(regularize__strength=1.0)), "dropout": 0.0, "l1": 1e-3}


def test_resolving_twice_changes_nothing_and_explicit_survives_it() -> None:
    by_hand = recipe(regularize__dropout=0.4, regularize__weight_decay=0.1)
    assert resolve(resolve(by_hand)) == resolve(by_hand)
    assert explicit(by_hand) == explicit(resolve(by_hand)) == {"dropout", "weight_decay"}
    assert explicit(resolve(Recipe())) == set()


def test_a_change_in_mid_training_moves_the_bundle() -> None:
    changing = Recipe().replace({"changes": ((3, {"regularize.strength": 1.0}),)})
    assert knobs(changing.at(3))["dropout"] == 0.5


def test_an_unresolved_knob_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="resolve"):
        number(Recipe().regularize.dropout)
