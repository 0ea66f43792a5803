"""Verdicts: each claim where it is due, honest about what was not decided, and careful with many rules at once."""

import math

import numpy as np
import pytest

from cvtune.verdict import (
    CONTRADICTED,
    NONE,
    SUPPORTED,
    UNDECIDED,
    UNTESTABLE,
    Arm,
    Evidence,
    holm,
    judge,
    page,
    units_needed,
)


def told(*contrasts: float, rule: str = "r", relevant: float = 0.02, either: bool = False) -> Evidence:
    return Evidence(rule, "It holds.", contrasts, relevant, either)


@pytest.mark.parametrize(
    ("contrasts", "either", "claim"),
    [
        ((0.05, 0.06, 0.055, 0.07), False, SUPPORTED),
        ((-0.05, -0.06, -0.055, -0.07), False, CONTRADICTED),
        ((-0.05, -0.06, -0.055, -0.07), True, SUPPORTED),  # a difference, whichever way
        ((0.001, -0.002, 0.002, 0.0), False, NONE),
        ((0.005, 0.006, 0.007, 0.006), False, NONE),  # surely there, and surely too small to matter
        ((-0.011, -0.03, -0.002, -0.03), False, UNDECIDED),  # below 0, but perhaps not by as much as would matter
        ((0.1, -0.1, 0.05, -0.02), False, UNDECIDED),
    ],
)
def test_claims(contrasts: tuple[float, ...], either: bool, claim: str) -> None:
    (verdict,) = judge([told(*contrasts, either=either)])
    assert verdict.claim == claim
    assert (verdict.needed is not None) == (claim == UNDECIDED) and (verdict.p is None) == (claim == UNDECIDED)


def test_the_interval_is_students() -> None:
    low, high = told(0.01, 0.02, 0.03).interval()
    assert (low, high) == pytest.approx(
        (0.02 - 4.3027 * 0.01 / math.sqrt(3), 0.02 + 4.3027 * 0.01 / math.sqrt(3)), 1e-4
    )


def test_holms_own_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_many_rules_together_are_held_to_more_than_one_alone() -> None:
    borderline = told(0.02, 0.06, 0.05, 0.01)
    assert judge([borderline])[0].claim == SUPPORTED
    others = [told(0.1, -0.1, 0.05, -0.07, rule=f"other{i}") for i in range(9)]
    assert judge([borderline, *others])[0].claim == UNDECIDED


def test_chance_alone_supports_few_rules() -> None:
    rng = np.random.default_rng(0)
    claims = [judge([told(*rng.normal(0, 0.03, 5))])[0].claim for _ in range(2000)]
    assert 0.03 < claims.count(SUPPORTED) / 2000 < 0.07 and claims.count(CONTRADICTED) / 2000 < 0.02


def test_the_units_that_would_decide_do_so() -> None:
    evidence = told(0.1, -0.1, 0.05, -0.02)
    needed, spread = units_needed(evidence, evidence.relevant), float(np.std(evidence.contrasts, ddof=1))
    assert needed is not None
    rng = np.random.default_rng(1)
    samples = rng.normal(evidence.relevant, spread, (4000, needed))
    t = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / math.sqrt(needed))
    assert np.mean(t > 1.645 + 1.5 / needed) == pytest.approx(0.8, abs=0.04)
    assert units_needed(told(50.0, -50.0), 0.02) is None


def test_units_that_suffice_are_not_asked_for_again_where_the_effect_lies_near_a_limit() -> None:
    seen = told(-0.022, -0.026, -0.005, -0.022, -0.013, -0.021)
    (verdict,) = judge([seen])
    assert verdict.claim == UNDECIDED and verdict.near and (units_needed(seen, seen.relevant) or 0) <= 6
    assert seen.margin() == pytest.approx(0.02 - 0.109 / 6)
    assert verdict.needed is not None and verdict.needed > 50
    assert f"near the limit of what matters, and if it is as seen about {verdict.needed} units" in verdict.sentence()
    (far,) = judge([told(0.1, -0.1, 0.05, -0.02)])
    assert not far.near


def test_verdicts_as_a_page() -> None:
    seen = Evidence("r", "It holds.", (0.05, 0.06), 0.02, arms=(Arm("a", {"optim.lr": 0.00234}, (0.8, 0.81)),))
    written = page(judge([seen, Evidence("s", "It.", (), 0.02, untestable="it is not.")]))
    assert "| r | " in written and "| +0.0550 (" in written and "| 0.02 | 2 |" in written
    assert "| a | optim.lr 0.0023 | 0.8050 | 0.800 0.810 |" in written
    assert "| s | not testable here | | | | | |" in written


def test_sentences_name_effect_interval_and_units() -> None:
    undecided, silent = judge([told(0.1, -0.1, 0.05, -0.02), Evidence("s", "It.", (), 0.02, untestable="it is not.")])
    assert silent.claim == UNTESTABLE and silent.sentence() == "not testable here: it is not."
    assert "effect +0.0075, 95 % interval -0.13" in undecided.sentence()
    assert (
        f"about {undecided.needed} units would tell an effect of 0.02 from none with 80% power" in undecided.sentence()
    )
