"""A small, seeded version of the study of calibration: what the analysis says of simulated studies is mostly true."""

from __future__ import annotations

import numpy as np
from calibration import averaged, curves, final, reached, repetition, simulated
from rules import calibrated, expected_share, pointwise
from truths import KINDS, world

from cvtune.analysis.design import Link
from cvtune.analysis.surface import region_of


def test_what_is_said_of_simulated_studies_is_mostly_true() -> None:
    """Twelve studies of 32 trials under ASHA without an interaction, twelve with one of -4 logits."""
    plain = [repetition("peak", "random", number, 32, -4.0) for number in range(12)]
    tilted = [repetition("ridge", "random", number, 32, -4.0) for number in range(12)]
    assert sum(row["best"] for row in plain + tilted) >= 20
    assert np.mean([row["band"] for row in plain + tilted]) >= 0.85
    assert np.mean([row["area"] for row in plain + tilted]) <= 0.35
    assert sum(row["shown"] for row in plain) <= 1
    assert sum(row["right_sign"] for row in tilted) >= 8
    assert sum(row["slope"] for row in plain + tilted) >= 20


def test_every_kind_is_simulated_with_stopped_trials() -> None:
    for kind in KINDS:
        rng = np.random.default_rng(0)
        tables = simulated(world(kind, rng, -4.0), "random", 0, rng, 16)
        steps = np.unique(tables.epochs["trial"].astype(str), return_counts=True)[1]
        assert len(steps) == 19
        assert steps.min() < steps.max() == 9
        assert ((tables.epochs["val_accuracy"] > 0) & (tables.epochs["val_accuracy"] <= 1)).all()


def test_the_average_over_the_learning_rate_is_that_of_many_rates() -> None:
    true = world("ridge cliff", np.random.default_rng(0), -4.0)
    u, z = np.linspace(0, 1, 3), np.linspace(0.0005, 0.9995, 1000)
    many = np.array([[final(true, np.column_stack([0 * z + x, 0 * z + y, z])).mean() for x in u] for y in u])
    assert np.allclose(averaged(true, u), many, atol=1e-5)


def test_the_best_of_several_noisy_epochs_is_higher_than_the_final_score_without_noise() -> None:
    true, link = world("peak", np.random.default_rng(0), -4.0), Link("val_accuracy", 1.0)
    more = reached(true, np.array([0.2, 0.5]), link)
    place = np.column_stack([np.full(4000, 0.5), np.full(4000, 0.2), (np.arange(4000) + 0.5) / 4000])
    trials = link.raw(curves(true, place, np.random.default_rng(1)).max(1))
    assert abs(more[0, 1] - (trials - final(true, place)).mean()) < 0.06  # row: y, column: x
    assert more.min() > 0 and more.max() < 0.2


def test_the_rules_tried_do_as_they_say() -> None:
    """The pointwise one is the analysis' own; the share is that of the draws, by the smallest set."""
    rng = np.random.default_rng(0)
    u = np.linspace(0, 1, 7)
    draws = -np.add.outer((u - 0.5) ** 2, u**2)[None] + 0.1 * rng.standard_normal((300, 7, 7))
    flat = draws.reshape(300, -1)
    assert np.array_equal(pointwise(0.1)(flat, 0.05), region_of(draws, 0.05)[0].ravel())
    held = expected_share(0.9)(flat, 0.05)
    near = flat >= flat.max(1, keepdims=True) - 0.05
    share = near / near.sum(1, keepdims=True)
    assert share[:, held].sum(1).mean() >= 0.9
    assert np.sort(share.mean(0))[::-1][: held.sum() - 1].sum() < 0.9
    level = expected_share(0.9)(rng.standard_normal((300, 49)), 0.5)
    assert 0.8 <= level.mean() <= 0.92  # where all are alike it is a share of everything
    assert calibrated(0.9)(flat, 0.05)[flat.mean(0).argmax()]
