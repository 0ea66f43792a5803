"""Ready-made pieces of a space: their ranges, what they refuse, and that every end of them can be trained."""

import numpy as np
import pytest

from cvtune.errors import ConfigError
from cvtune.preflight import corners
from cvtune.priors import MOMENTA, RATES, optimizer_space, resolution_space
from cvtune.recipe import FIELDS, Recipe
from cvtune.space import Choice, PerChoice, space
from cvtune.study import Study


def test_every_optimizer_has_its_rates_around_what_its_authors_propose() -> None:
    assert set(RATES) == set(FIELDS["optim.name"].choices)
    proposed = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "adagrad": 1e-2, "rmsprop": 1e-3}
    assert all(RATES[name].contains(lr) for name, lr in proposed.items())
    assert "adagrad" not in MOMENTA  # it knows none, see Stepper.in_force


def test_a_draw_has_the_rate_and_momentum_of_its_own_optimizer() -> None:
    built = optimizer_space()
    points = [built.sample(np.random.default_rng(i)) for i in range(200)]
    for point in points:
        assert RATES[point["optim.name"]].contains(point["optim.lr"])
        assert ("optim.momentum" in point) == (point["optim.name"] in MOMENTA)
    assert {point["optim.name"] for point in points} == set(RATES)
    assert set(optimizer_space(("adam", "adagrad")).domains) == {"optim.name", "optim.lr"}


def test_a_fixed_optimizer_keeps_its_own_rates() -> None:
    study = Study(space=optimizer_space()).set({"optim.name": "sgd"})
    assert study.space.domains == {"optim.lr": RATES["sgd"], "optim.momentum": MOMENTA["sgd"]}
    assert Study(space=optimizer_space()).set({"optim.name": "adagrad"}).space.domains == {"optim.lr": RATES["adagrad"]}


def test_the_check_before_the_first_trial_visits_every_optimizers_ends() -> None:
    seen = {(r.optim.name, r.optim.lr) for words, r in corners(Study(space=optimizer_space())) if "optim.lr" in words}
    assert seen == {(name, lr) for name, domain in RATES.items() for lr in domain.edges()}


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: optimizer_space(("sgd", "adamx")), "'adamx' is no optimizer. Did you mean"),
        (lambda: optimizer_space(("sgd",)), "two different ones or more"),
        (lambda: optimizer_space(("sgd", "sgd")), "two different ones or more"),
        (lambda: resolution_space([64]), "two sizes or more"),
    ],
)
def test_what_is_no_choice_is_refused(build, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build()


def test_a_higher_resolution_means_more_regularization_and_a_lower_rate() -> None:
    built = resolution_space([128, 64, 96])
    assert built.domains["data.image_size"] == Choice(64, 96, 128)
    rates, strengths = built.domains["optim.lr"], built.domains["regularize.strength"]
    assert isinstance(rates, PerChoice) and isinstance(strengths, PerChoice)
    for (small, at_small), (large, at_large) in zip(rates.cases, rates.cases[1:], strict=False):
        assert at_large.low / at_small.low == pytest.approx(small / large) == at_large.high / at_small.high
        assert at_large.contains(at_small.at(0.5))  # neighbors overlap
    assert [domain.edges() for _, domain in strengths.cases] == [(0, 0.75), (0.125, 0.875), (0.25, 1)]
    assert built.domains["augment.strength"] == strengths


def test_pieces_go_into_a_space_of_ones_own() -> None:
    study = Study(space=space({**optimizer_space(("sgd", "adamw")).domains, "data.batch_size": Choice(16, 32, 64)}))
    recipe = study.trial(0, study.space.sample(np.random.default_rng(0)))
    assert isinstance(recipe, Recipe) and recipe.data.batch_size in (16, 32, 64)
