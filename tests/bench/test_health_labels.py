"""The labels that verdicts are measured by: they follow from outcomes, and what is unclear is neither."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import health
import health_sets
import numpy as np
import pytest


def run(rate: float, seed: int, test: list[float], **more: Any) -> dict[str, Any]:
    """A run of an arm of rates: untrained 2.4 on the training images, 2.3 on those of the test."""
    job = health.Job("test", "rate", "digits", "small_resnet", "sgd", rate, 0.0, seed)
    made = {"job": dataclasses.asdict(job), "start": {"train": 2.4, "test": 2.3}, "test": test}
    return made | {"train": test[-1], "gap": [0.0, 0.01], "top": [0.2, 0.1]} | more


def swept() -> list[dict[str, Any]]:
    """Rates 1, 2, 3, 4 with outcomes 1.0, 0.5, 0.62, 1.2, each of them plus and minus 0.01."""
    ends = {1.0: 1.0, 2.0: 0.5, 3.0: 0.62, 4.0: 1.2}
    return [run(rate, seed, [2.0, end + 0.01 * (seed - 1)]) for rate, end in ends.items() for seed in range(3)]


def labels(one: dict[str, Any]) -> dict[str, bool | None]:
    return health.labels(one, health.group_of(swept()))


def test_too_high_and_too_low_are_worse_than_the_optimum_on_its_two_sides() -> None:
    by_rate = {rate: labels(run(rate, 0, [2.0, end])) for rate, end in ((1.0, 1.0), (2.0, 0.5), (4.0, 1.2))}
    high, low = "learning rate too high", "learning rate too low"
    assert [(found[high], found[low]) for found in by_rate.values()] == [(False, True), (False, False), (True, False)]
    assert by_rate[1.0]["underfitting"] is True and by_rate[2.0]["underfitting"] is False


def test_a_difference_beyond_the_noise_that_is_of_no_interest_is_unclear() -> None:
    """A tenth of what training gains is 0.18: 0.62 is worse beyond two standard errors, and not relevant."""
    assert labels(run(3.0, 0, [2.0, 0.62]))["learning rate too high"] is None
    assert labels(run(3.0, 0, [2.0, 0.51]))["learning rate too high"] is False


def test_a_difference_of_interest_within_the_noise_is_unclear_too() -> None:
    noisy = dataclasses.replace(health.group_of(swept()), error=0.2)
    assert health.labels(run(3.0, 0, [2.0, 0.8]), noisy)["learning rate too high"] is None
    assert health.labels(run(3.0, 0, [2.0, 0.95]), noisy)["learning rate too high"] is True


@pytest.mark.parametrize(
    ("end", "diverged"), [([2.0, math.nan], True), ([0.9, 2.6], True), ([2.0, 2.3], False)]
)  # fmt: skip
def test_diverged_is_what_ends_above_its_start_or_in_no_number(end: list[float], diverged: bool) -> None:
    assert labels(run(4.0, 0, end))["diverged"] is diverged


def test_overfitting_and_collapse_are_seen_on_test_images() -> None:
    assert labels(run(2.0, 0, [0.5, 0.9], gap=[0.4, 0.05]))["overfitting"] is True
    assert labels(run(2.0, 0, [0.5, 0.6], gap=[0.1, 0.02]))["overfitting"] is None
    assert labels(run(2.0, 0, [0.5, 0.9], gap=[0.4, 0.3]))["overfitting"] is None
    assert labels(run(2.0, 0, [0.5, 0.6], gap=[0.1, 0.1]))["overfitting"] is False
    assert labels(run(4.0, 0, [0.5, 2.6], gap=[2.1, 0.05]))["overfitting"] is False  # it diverged
    assert labels(run(2.0, 0, [2.0, 2.3], top=[0.95, 0.1]))["collapsed to the majority class"] is True
    assert labels(run(2.0, 0, [2.0, 2.3], top=[0.95, 0.7]))["collapsed to the majority class"] is False


def test_wilsons_interval() -> None:
    assert health.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert health.wilson(0, 0) == (0.0, 1.0)


def test_development_and_test_share_no_data_and_test_has_what_development_has_not() -> None:
    known, new = ([set(of) for of in zip(*(group for group, _ in part), strict=True)] for part in health.PARTS.values())
    assert not known[0] & new[0] and len(new[0]) >= 2
    assert not known[1] & new[1] and new[2] - known[2]


def test_what_the_bench_draws_is_the_same_each_time(tmp_path: Path) -> None:
    first, again = health_sets.shapes(tmp_path), health_sets.shapes(tmp_path)
    for part, count in (("train", health_sets.TRAIN), ("val", health_sets.VAL), ("test", health_sets.HELD)):
        assert first[part][0].shape == (count, 16, 16, 3) and first[part][0].dtype == np.uint8
        assert (first[part][0] == again[part][0]).all() and set(first[part][1]) == set(range(len(health_sets.SHAPES)))
