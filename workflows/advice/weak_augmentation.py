"""Does weak augmentation need more regularization?

uv run cvtune advise DATA workflows/advice/weak_augmentation.py
"""

from advice_base import HEAVY, LIGHT, RATES, WEAK, base

from cvtune.rule import Rule


def rule() -> Rule:
    arms = {"light": WEAK | LIGHT, "heavy": WEAK | HEAVY}
    return Rule(
        name="weak_augmentation",
        says="Weak augmentation needs more regularization: heavy beats light.",
        study=base(),
        arms=arms,
        contrast={"heavy": 1, "light": -1},
        tuned=dict.fromkeys(arms, RATES),
    )
