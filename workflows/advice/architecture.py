"""Does the sweet spot move with the architecture? Weak against strong augmentation, on a narrow and a wide network.

uv run cvtune advise DATA workflows/advice/architecture.py
"""

from advice_base import RATES, STRONG, WEAK, base, crossed

from cvtune.rule import Rule


def rule() -> Rule:
    arms = crossed({"narrow": {"model.width": 8}, "wide": {"model.width": 32}}, {"weak": WEAK, "strong": STRONG})
    return Rule(
        name="architecture",
        says="The best augmentation depends on the size of the network.",
        study=base(),
        arms=arms,
        contrast={"wide-strong": 1, "wide-weak": -1, "narrow-strong": -1, "narrow-weak": 1},
        tuned=dict.fromkeys(arms, RATES),
        either=True,
    )
