"""Does normalization help a deep network?

uv run cvtune advise DATA workflows/advice/normalization.py
"""

from advice_base import RATES, base

from cvtune.rule import Rule


def rule() -> Rule:
    arms = {"batch": {"model.norm": "batch"}, "none": {"model.norm": "none"}}
    return Rule(
        name="normalization",
        says="Batch normalization helps a network of 18 layers.",
        study=base(model__name="torchvision:resnet18"),
        arms=arms,
        contrast={"batch": 1, "none": -1},
        tuned=dict.fromkeys(arms, RATES),
    )
