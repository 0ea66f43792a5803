"""A small, seeded version of the study of calibration: what the analysis says of simulated studies is mostly true."""

from __future__ import annotations

import numpy as np
from calibration import averaged, final, repetition, simulated
from truths import KINDS, world


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
