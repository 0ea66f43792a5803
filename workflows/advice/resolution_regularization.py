"""Does a higher resolution want more regularization?

uv run cvtune advise DATA workflows/advice/resolution_regularization.py
"""

from advice_base import HEAVY, LIGHT, RATES, base, crossed

from cvtune.rule import Rule


def rule() -> Rule:
    sizes = {"small": {"data.image_size": 32}, "large": {"data.image_size": 64}}
    arms = crossed(sizes, {"light": LIGHT, "heavy": HEAVY})
    return Rule(
        name="resolution_regularization",
        says="A higher resolution wants more regularization: heavy instead of light gains more at 64 px than at 32.",
        study=base(),
        arms=arms,
        contrast={"large-heavy": 1, "large-light": -1, "small-heavy": -1, "small-light": 1},
        tuned=dict.fromkeys(arms, RATES),
    )
