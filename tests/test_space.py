"""Space: domains, conditions, and what is refused when it is built."""

import numpy as np
import pytest

from cvtune.errors import ConfigError
from cvtune.space import Choice, IntUniform, LogUniform, Space, Uniform, When, space

CONDITIONAL = space(
    {"optim.momentum": Uniform(0, 0.9), "optim.name": Choice("sgd", "adamw"), "optim.lr": LogUniform(1e-4, 1e-1)},
    {"optim.momentum": When("optim.name", "sgd")},
)


@pytest.mark.parametrize(
    "domain", [Uniform(0.2, 0.6), LogUniform(1e-4, 1e-1), IntUniform(2, 5), Choice("a", "b", None)]
)
def test_a_domain_covers_both_ends_and_nothing_else(domain) -> None:
    values = [domain.at(u) for u in np.linspace(0, 1, 1001)]
    edges = domain.edges()
    assert values[0] == pytest.approx(edges[0]) and values[-1] == (
        pytest.approx(edges[-1]) if edges[-1] is not None else None
    )
    if not isinstance(domain, Choice):
        assert min(values) >= edges[0] and max(values) <= edges[1]


def test_log_uniform_gives_each_order_of_magnitude_the_same_share() -> None:
    values = np.array([LogUniform(1e-4, 1e-1).at(u) for u in np.linspace(0, 1, 3001)])
    assert np.histogram(np.log10(values), bins=3, range=(-4, -1))[0] == pytest.approx([1000, 1000, 1000], abs=2)


def test_a_condition_decides_whether_a_value_is_drawn() -> None:
    points = [CONDITIONAL.sample(np.random.default_rng(i)) for i in range(200)]
    assert all(("optim.momentum" in p) == (p["optim.name"] == "sgd") for p in points)
    assert {p["optim.name"] for p in points} == {"sgd", "adamw"}


def test_a_condition_does_not_shift_the_other_draws() -> None:
    free = Space(domains=CONDITIONAL.domains)
    assert all(
        CONDITIONAL.sample(np.random.default_rng(i))["optim.lr"] == free.sample(np.random.default_rng(i))["optim.lr"]
        for i in range(20)
    )


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Uniform(1, 0), "upside down"),
        (lambda: IntUniform(3, 3), "upside down or empty"),
        (lambda: LogUniform(0, 1), "above 0"),
        (lambda: Choice("a"), "at least two"),
        (lambda: space({"optim.lrr": Uniform(0, 1)}), "Did you mean 'optim.lr'"),
        (lambda: space({"augment.strength": Uniform(0, 1.5)}), "augment.strength = 1.5"),
        (lambda: space({"optim.name": Choice("sgd", "adamx")}), "optim.name = 'adamx'"),
        (lambda: space({"max_epochs": IntUniform(1, 9)}), "cannot be searched"),
        (lambda: space({"regularize.strength": Uniform(0, 1), "regularize.l1": Uniform(0, 1)}), "knobs_win"),
        (
            lambda: space({"optim.lr": LogUniform(0.1, 1)}, {"optim.lr": When("optim.name", "sgd")}),
            "needs 'optim.name'",
        ),
        (
            lambda: space(
                {"optim.name": Choice("sgd", "adam"), "optim.momentum": Uniform(0, 0.9)},
                {"optim.momentum": When("optim.name", "rmsprop")},
            ),
            "never takes",
        ),
        (
            lambda: space(
                {"optim.name": Choice("sgd", "adam"), "model.norm": Choice("batch", "group")},
                {"optim.name": When("model.norm", "batch"), "model.norm": When("optim.name", "sgd")},
            ),
            "in a circle",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_when_the_space_is_built(build, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build()


def test_a_knob_beside_its_strength_is_allowed_when_the_author_says_so() -> None:
    both = space({"regularize.strength": Uniform(0, 1), "regularize.l1": Uniform(0, 1)}, knobs_win=True)
    assert set(both.domains) == {"regularize.strength", "regularize.l1"}


def test_a_space_survives_json() -> None:
    assert Space.model_validate_json(CONDITIONAL.model_dump_json()) == CONDITIONAL


def test_without_drops_names_and_the_conditions_on_them() -> None:
    assert not CONDITIONAL.without({"optim.name"}).conditions
    assert set(CONDITIONAL.without({"optim.lr"}).domains) == {"optim.momentum", "optim.name"}
