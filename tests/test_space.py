"""Space: domains, conditions, and what is refused when it is built."""

import numpy as np
import pytest

from cvtune.errors import ConfigError
from cvtune.recipe import Recipe
from cvtune.space import Choice, IntUniform, LogUniform, PerChoice, Space, Uniform, When, space

CONDITIONAL = space(
    {"optim.momentum": Uniform(0, 0.9), "optim.name": Choice("sgd", "adamw"), "optim.lr": LogUniform(1e-4, 1e-1)},
    {"optim.momentum": When("optim.name", "sgd")},
)
RATES = PerChoice("optim.name", {"sgd": LogUniform(1e-2, 0.5), "adamw": LogUniform(1e-4, 1e-3)})
BY_NAME = space(
    {
        "optim.lr": RATES,
        "optim.momentum": PerChoice("optim.name", {"sgd": Uniform(0, 0.95)}),
        "optim.name": Choice("sgd", "adamw", "adagrad"),
        "augment.strength": Uniform(0, 1),
    }
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


@pytest.mark.parametrize(
    "domain",
    [Uniform(0.1, 0.7), LogUniform(1e-4, 2e-2), IntUniform(2, 5), Choice("a", "b", None), Choice(True, 1, 0.5)],
)
def test_a_value_leads_back_to_its_quantile(domain) -> None:
    for u in np.linspace(0, 1, 1001):
        value = domain.at(u)
        assert domain.contains(value)
        again = domain.quantile(value)
        assert 0 <= again <= 1
        assert domain.at(again) == (pytest.approx(value) if isinstance(value, float) else value)
        assert isinstance(domain, IntUniform | Choice) or again == pytest.approx(u, abs=1e-9)


@pytest.mark.parametrize(
    ("domain", "outside"),
    [
        (Uniform(0, 1), (-1e-9, 1.1, True, None, "0.5")),
        (LogUniform(1e-4, 1e-1), (0, 0.2, "0.01")),
        (IntUniform(1, 5), (0, 6, 2.0, 2.5, True)),
        (Choice("a", None, 1), ("b", True, 0)),
    ],
)
def test_a_domain_contains_what_it_can_propose_and_nothing_else(domain, outside) -> None:
    assert all(domain.contains(value) for value in domain.edges())
    assert not any(domain.contains(value) for value in outside)
    assert not isinstance(domain, Uniform) or domain.contains(1)  # a whole number, as JSON has it


@pytest.mark.parametrize(
    ("domain", "wide"),
    [
        (Uniform(-1, 3, likely=(0, 1)), 0.25),
        (LogUniform(1e-4, 1e-1, likely=(1e-3, 1e-2)), 1 / 3),
        (IntUniform(1, 10, likely=(2, 4)), 0.3),
    ],
)
def test_the_likely_part_of_a_domain_is_what_lies_between_its_quantiles(domain, wide) -> None:
    low, high = domain.likely_quantiles()
    assert high - low == pytest.approx(wide)
    values = {domain.at(u) for u in np.linspace(low, high - 1e-9, 100)}
    assert min(values) == pytest.approx(domain.likely[0]) and max(values) == pytest.approx(domain.likely[1])


def test_three_of_four_points_are_drawn_from_what_is_likely_and_the_others_from_everywhere() -> None:
    hinted = space(
        {
            "augment.strength": Uniform(0, 1, likely=(0, 0.25)),
            "optim.name": Choice("sgd", "adamw"),
            "optim.lr": PerChoice(
                "optim.name", {"sgd": LogUniform(1e-2, 1, likely=(1e-2, 1e-1)), "adamw": RATES.cases[1][1]}
            ),
        }
    )
    points = [hinted.sample(np.random.default_rng(i)) for i in range(4000)]
    strengths = np.array([p["augment.strength"] for p in points])
    assert np.mean(strengths < 0.25) == pytest.approx(0.75 + 0.25 * 0.25, abs=0.03)
    assert np.histogram(strengths[strengths >= 0.25], 3, (0.25, 1))[0] == pytest.approx(250, rel=0.2)
    sgd = [(p["augment.strength"], p["optim.lr"]) for p in points if p["optim.name"] == "sgd"]
    assert np.mean([rate < 0.1 for _, rate in sgd]) == pytest.approx(0.75 + 0.25 * 0.5, abs=0.03)
    both = np.mean([rate < 0.1 and strength < 0.25 for strength, rate in sgd])
    assert both == pytest.approx(0.75 + 0.25 * 0.125, abs=0.03)  # all of a point's values together
    assert {p["optim.name"] for p in points if p["augment.strength"] < 0.25} == {"sgd", "adamw"}


def test_without_a_likely_part_draws_are_what_they_were_and_nothing_is_written_of_it() -> None:
    assert "likely" not in CONDITIONAL.model_dump_json() and not CONDITIONAL.hints and not BY_NAME.hints
    rng = np.random.default_rng(7)
    drawn = [CONDITIONAL.sample(rng) for _ in range(5)]
    again = np.random.default_rng(7)
    assert drawn == [CONDITIONAL.pick({n: float(again.random()) for n in CONDITIONAL.domains}) for _ in range(5)]


def test_what_is_likely_is_written_and_read_again() -> None:
    hinted = space(
        {"optim.lr": LogUniform(1e-4, 1e-1, likely=(1e-3, 1e-2)), "data.batch_size": IntUniform(8, 64, likely=(16, 32))}
    )
    assert Space.model_validate_json(hinted.model_dump_json()) == hinted and hinted.hints
    assert hinted.without({"optim.lr": 0.1}).hints and not hinted.without({"data.batch_size": 8, "optim.lr": 0.1}).hints


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
        (lambda: Uniform(0, 1, likely=(0.5, 1.5)), r"likely=\(0.5, 1.5\)\): likely is a part of the range"),
        (lambda: LogUniform(1e-3, 1, likely=(0.1, 0.01)), "its lower end first"),
        (lambda: IntUniform(1, 9, likely=(3, 3)), "two different values within the range"),
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
        (lambda: space({"optim.lr": RATES}), "'optim.lr' has a domain per value of 'optim.name', which must then be"),
        (lambda: PerChoice("optim.name", {}), "at least one value"),
        (lambda: PerChoice("optim.name", [("sgd", Uniform(0, 1)), ("sgd", Uniform(0, 2))]), "each value one domain"),
        (lambda: space({"optim.lr": RATES, "optim.name": Choice("sgd", "adam")}), "'adamw', which it never takes"),
        (
            lambda: space(
                {"optim.lr": PerChoice("optim.warmup_epochs", {1: Uniform(1, 2)}), "optim.warmup_epochs": Uniform(0, 2)}
            ),
            "which is no Choice",
        ),
        (
            lambda: space(dict(BY_NAME.domains), {"optim.lr": When("augment.strength", 1.0)}),
            "and a condition beside it",
        ),
        (lambda: space({**BY_NAME.domains, "optim.lr": PerChoice("optim.name", {"sgd": Uniform(1, 101)})}), "= 101"),
    ],
)
def test_what_cannot_be_searched_is_refused_when_the_space_is_built(build, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build()


def test_a_knob_beside_its_strength_is_allowed_when_the_author_says_so() -> None:
    both = space({"regularize.strength": Uniform(0, 1), "regularize.l1": Uniform(0, 1)}, knobs_win=True)
    assert set(both.domains) == {"regularize.strength", "regularize.l1"}


def test_a_space_survives_json() -> None:
    for built in (CONDITIONAL, BY_NAME):
        assert Space.model_validate_json(built.model_dump_json()) == built


def test_without_drops_names_and_the_conditions_on_them() -> None:
    assert not CONDITIONAL.without({"optim.name": "sgd"}).conditions
    assert set(CONDITIONAL.without({"optim.name": "sgd"}).domains) == {"optim.momentum", "optim.lr"}
    assert set(CONDITIONAL.without({"optim.name": "adamw"}).domains) == {"optim.lr"}  # there it is not searched
    assert set(CONDITIONAL.without({"optim.lr": 0.1}).domains) == {"optim.momentum", "optim.name"}


def test_encoded_points_are_quantiles_and_decode_to_the_same_values() -> None:
    for index in range(50):
        values = CONDITIONAL.sample(np.random.default_rng(index))
        encoded = CONDITIONAL.encode(values)
        assert len(encoded) == 3 and all(0 <= u <= 1 for u in encoded)
        assert ("optim.momentum" in values) or encoded[0] == 0.5
        assert CONDITIONAL.pick(dict(zip(CONDITIONAL.domains, encoded, strict=True))) == pytest.approx(values)


def test_given_values_are_kept_as_far_as_their_condition_holds() -> None:
    rng = np.random.default_rng(0)
    assert CONDITIONAL.sample(rng, {"optim.name": "sgd", "optim.momentum": 0.3})["optim.momentum"] == 0.3
    assert "optim.momentum" not in CONDITIONAL.sample(rng, {"optim.name": "adamw", "optim.momentum": 0.3})


def test_restrict_finds_the_searched_values_of_a_recipe() -> None:
    recipe = Recipe().replace({"optim.name": "sgd", "optim.momentum": 0.5, "optim.lr": 0.01})
    searched = {"optim.name": "sgd", "optim.lr": 0.01, "optim.momentum": 0.5}
    assert CONDITIONAL.restrict(recipe.flat()) == searched
    adam = recipe.replace({"optim.name": "adamw", "optim.momentum": 0.95})  # not searched with adamw, so it may be any
    assert CONDITIONAL.restrict(adam.flat()) == {"optim.name": "adamw", "optim.lr": 0.01}
    assert CONDITIONAL.restrict(recipe.replace({"optim.momentum": 0.95}).flat()) is None
    assert CONDITIONAL.restrict({"optim.name": "sgd", "optim.lr": 0.01}) is None


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"optim.lrr": 0.01}, "'optim.lrr' is not searched. Did you mean 'optim.lr'"),
        ({"optim.lr": 0.5}, r"optim.lr = 0.5 lies outside LogUniform\(0.0001, 0.1\)"),
        ({"optim.name": "sgdd"}, r"optim.name = 'sgdd' lies outside Choice\('sgd', 'adamw'\)"),
    ],
)
def test_a_point_that_no_searcher_could_propose_is_refused(point, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CONDITIONAL.check_point(point)
    CONDITIONAL.check_point({"optim.lr": 0.05})  # a part of a point will do


# --- a domain per value of another name


def test_each_choice_draws_from_its_own_domain_or_not_at_all() -> None:
    points = [BY_NAME.sample(np.random.default_rng(i)) for i in range(300)]
    rates = {
        name: [p.get("optim.lr") for p in points if p["optim.name"] == name] for name in ("sgd", "adamw", "adagrad")
    }
    assert all(1e-2 <= lr <= 0.5 for lr in rates["sgd"]) and all(1e-4 <= lr <= 1e-3 for lr in rates["adamw"])
    assert set(rates["adagrad"]) == {None}
    assert all(("optim.momentum" in p) == (p["optim.name"] == "sgd") for p in points)
    for point in points:
        assert BY_NAME.restrict(Recipe().replace(point).flat()) == point
        encoded = dict(zip(BY_NAME.domains, BY_NAME.encode(point), strict=True))
        assert BY_NAME.pick(encoded) == pytest.approx(point)


def test_a_value_of_another_case_lies_outside() -> None:
    wrong = Recipe().replace({"optim.name": "adamw", "optim.lr": 0.1})
    assert BY_NAME.restrict(wrong.flat()) is None
    assert BY_NAME.outside(wrong.flat()) == ["optim.lr"]
    BY_NAME.check_point({"optim.lr": 0.1})  # with SGD it may be
    with pytest.raises(ConfigError, match=r"lies outside LogUniform\(0.0001, 0.001\)"):
        BY_NAME.check_point({"optim.lr": 0.1, "optim.name": "adamw"})
    with pytest.raises(ConfigError, match=r"outside LogUniform\(0.01, 0.5\) and LogUniform\(0.0001, 0.001\)"):
        BY_NAME.check_point({"optim.lr": 0.9})


def test_a_partial_point_gets_the_parent_that_its_value_belongs_to() -> None:
    assert BY_NAME.completed({"optim.lr": 5e-4}) == {"optim.lr": 5e-4, "optim.name": "adamw"}
    assert BY_NAME.completed({"optim.momentum": 0.3})["optim.name"] == "sgd"


def test_a_fixed_parent_leaves_the_one_domain_that_it_decides() -> None:
    assert BY_NAME.without({"optim.name": "adamw"}).domains == {
        "optim.lr": LogUniform(1e-4, 1e-3),
        "augment.strength": Uniform(0, 1),
    }
    assert set(BY_NAME.without({"optim.name": "adagrad"}).domains) == {"augment.strength"}


def test_the_ends_of_every_case_are_visited_with_their_parent() -> None:
    ends = dict(BY_NAME.ends())
    assert ends["optim.lr = 0.5 at optim.name = 'sgd'"] == {"optim.lr": 0.5, "optim.name": "sgd"}
    assert ends["optim.lr = 0.0001 at optim.name = 'adamw'"] == {"optim.lr": 1e-4, "optim.name": "adamw"}
    assert len(ends) == 3 + 2 + 4 + 2
    assert {"optim.momentum": 0.9, "optim.name": "sgd"} in dict(CONDITIONAL.ends()).values()


def test_a_choice_takes_its_values_as_a_list_too() -> None:
    assert Choice([16, 32]) == Choice((16, 32)) == Choice(16, 32)
    with pytest.raises(ConfigError, match="list at least two different values"):
        Choice([16])
