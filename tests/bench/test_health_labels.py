"""The labels that verdicts are measured by: they follow from outcomes, and what is unclear is neither."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import health
import health_labels
import health_sets
import numpy as np
import pytest
import torch

from cvtune.recipe import Recipe


def run(rate: float, seed: int, test: list[float], arm: str = "rate", **more: Any) -> dict[str, Any]:
    """A run: untrained 2.4 on the training images, 2.3 on those of the test, the first fitted as well as the others."""
    job = health.Job("test", arm, "mnist", "separable", "sgd", rate, more.pop("strength", 0.0), seed)
    made = {"job": dataclasses.asdict(job), "start": {"train": 2.4, "test": 2.3}, "test": test}
    reports = [{"clean_loss": loss} for loss in more.pop("clean", test)]
    return made | {"train": test[-1], "gap": [0.0, 0.01], "top": [0.2, 0.1], "reports": reports} | more


def group(longer: float = 0.45) -> health_labels.Group:
    """Rates 1, 2, 3, 4 with outcomes 1.0, 0.5, 0.62, 1.2, each plus and minus 0.01; strengths with 0.5, 0.45, 0.9."""
    ends = {1.0: 1.0, 2.0: 0.5, 3.0: 0.62, 4.0: 1.2}
    runs = [run(rate, seed, [2.0, end + 0.01 * (seed - 1)]) for rate, end in ends.items() for seed in range(3)]
    strong = {0.0: 0.5, 0.5: 0.45, 1.0: 0.9}
    for seed in range(3):
        runs += [run(2.0, seed, [2.0, e + 0.01 * seed], "strength", strength=s) for s, e in strong.items()]
        runs += [run(2.0, seed, [2.0, longer], "long"), run(2.0, seed, [1.9, 1.8 + 0.01 * seed], "few")]
    return health_labels.group_of(runs)


def labels(one: dict[str, Any]) -> dict[str, bool | None]:
    return health_labels.labels(one, group())


def test_too_high_and_too_low_are_worse_than_the_optimum_on_its_two_sides() -> None:
    by_rate = {rate: labels(run(rate, 0, [2.0, end])) for rate, end in ((1.0, 1.0), (2.0, 0.5), (4.0, 1.2))}
    high, low = "learning rate too high", "learning rate too low"
    assert [(found[high], found[low]) for found in by_rate.values()] == [(False, True), (False, False), (True, False)]


def test_a_difference_beyond_the_noise_that_is_of_no_interest_is_unclear() -> None:
    """A tenth of what training gains is 0.18: 0.62 is worse beyond two standard errors, and not relevant."""
    assert labels(run(3.0, 0, [2.0, 0.62]))["learning rate too high"] is None
    assert labels(run(3.0, 0, [2.0, 0.51]))["learning rate too high"] is False


def test_a_difference_of_interest_within_the_noise_is_unclear_too() -> None:
    known = group()
    noisy = dataclasses.replace(known, arms=known.arms | {"rate": dataclasses.replace(known.arms["rate"], error=0.2)})
    assert health_labels.labels(run(3.0, 0, [2.0, 0.8]), noisy)["learning rate too high"] is None
    assert health_labels.labels(run(3.0, 0, [2.0, 0.95]), noisy)["learning rate too high"] is True


@pytest.mark.parametrize(
    ("end", "diverged"), [([2.0, math.nan], True), ([0.9, 2.6], True), ([2.0, 2.3], False)]
)  # fmt: skip
def test_diverged_is_what_ends_above_its_start_or_in_no_number(end: list[float], diverged: bool) -> None:
    assert labels(run(4.0, 0, end))["diverged"] is diverged


def test_underfitting_is_what_was_fitted_better_by_others_and_would_have_done_better_so() -> None:
    """A quarter of the way from 0.45, where the longest training came, to 2.4 is 0.94."""
    assert labels(run(1.0, 0, [2.0, 1.0], train=1.0))["underfitting"] is True
    assert labels(run(1.0, 0, [2.0, 1.0], train=0.9))["underfitting"] is False  # its training images are fitted
    assert labels(run(3.0, 0, [2.0, 0.45], train=1.0))["underfitting"] is False  # none does better
    assert labels(run(3.0, 0, [2.0, 0.62], train=1.0))["underfitting"] is None  # by 0.17, a tenth of the gain is 0.18
    assert labels(run(4.0, 0, [2.0, 2.6], train=2.6))["underfitting"] is False  # it diverged
    assert labels(run(2.0, 0, [2.0, 0.9], "strength", strength=1.0, train=1.1))["underfitting"] is True


def test_the_group_reaches_what_its_best_rate_or_its_long_runs_do() -> None:
    assert group(longer=0.45).reached == group(longer=0.45).fitted == pytest.approx(0.45)
    unlearned = group(longer=1.9)
    assert unlearned.reached == unlearned.fitted == pytest.approx(0.5)


def test_augmentation_is_too_strong_above_the_best_strength() -> None:
    known = {s: labels(run(2.0, 0, [2.0, end], "strength", strength=s)) for s, end in ((0.0, 0.9), (1.0, 0.9))}
    assert [found["augmentation too strong"] for found in known.values()] == [False, True]
    assert "learning rate too high" not in known[1.0]


def test_overfitting_is_a_rise_on_test_images_while_the_training_images_are_fitted_better() -> None:
    fell = {"clean": [0.5, 0.1]}
    assert labels(run(2.0, 0, [0.5, 0.9], gap=[0.4, 0.05], **fell))["overfitting"] is True
    assert labels(run(2.0, 0, [0.5, 0.9], gap=[0.4, 0.05], clean=[0.5, 0.6]))["overfitting"] is False  # it unlearns
    assert labels(run(2.0, 0, [0.5, 0.6], gap=[0.1, 0.02], **fell))["overfitting"] is None
    assert labels(run(2.0, 0, [0.5, 0.9], gap=[0.4, 0.3], **fell))["overfitting"] is None
    assert labels(run(2.0, 0, [0.5, 0.6], gap=[0.1, 0.1], **fell))["overfitting"] is False
    assert labels(run(4.0, 0, [0.5, 2.6], gap=[2.1, 0.05], **fell))["overfitting"] is False  # it diverged


def test_a_collapse_is_seen_on_test_images_of_a_run_that_ends_in_numbers() -> None:
    name = "collapsed to the majority class"
    assert labels(run(2.0, 0, [2.0, 2.3], top=[0.95, 0.1]))[name] is True
    assert labels(run(2.0, 0, [2.0, 2.3], top=[0.95, 0.7]))[name] is False
    assert labels(run(2.0, 0, [2.0, math.nan], top=[1.0, 0.1]))[name] is False


def test_where_nothing_is_learned_and_of_more_seeds_only_what_needs_no_optimum_is_judged() -> None:
    few = {"diverged", "collapsed to the majority class"}
    assert set(labels(run(4.0, 0, [2.0, 2.2], "high"))) == few
    useless = [run(rate, seed, [2.2, 2.2], arm) for rate in (1.0, 2.0) for seed in (0, 1) for arm in ("rate", "long")]
    assert set(health_labels.labels(useless[0], health_labels.group_of(useless))) == few


def test_wilsons_interval() -> None:
    assert health.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert health.wilson(0, 0) == (0.0, 1.0)


def test_development_and_test_share_no_data_and_test_has_what_development_has_not() -> None:
    parts = [[set(of) for of in zip(*(group for group, _ in part), strict=True)] for part in health.PARTS.values()]
    known = [set[str]() for _ in range(3)]
    for number, part in enumerate(parts):
        if number:
            assert not known[0] & part[0] and len(part[0]) >= 2
            assert not known[1] & part[1] and part[2] - known[2]
        known = [old | new for old, new in zip(known, part, strict=True)]


def test_what_the_bench_draws_is_the_same_each_time() -> None:
    first, again = ([health_sets.drawn(letter, np.random.default_rng(1)) for letter in "AX"] for _ in range(2))
    assert first[0].shape == (16, 16, 3) and first[0].dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(*first)


@pytest.mark.parametrize("name", health_sets.OWN)
def test_each_network_tells_as_many_classes_as_asked(name: str) -> None:
    recipe = Recipe().replace({"data.image_size": 16})
    assert getattr(health_sets, name)(7, recipe)(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
