"""Does oversampling help the minority? Compared by the recall of the worst class.

uv run cvtune advise DATA workflows/advice/oversampling.py
"""

from advice_base import RATES, base

from cvtune.rule import Rule


def rule() -> Rule:
    arms = {"plain": {"data.oversample": 0.0}, "oversampled": {"data.oversample": 1.0}}
    return Rule(
        name="oversampling",
        says="Drawing rare classes as often as common ones raises the recall of the worst class.",
        study=base().set({"objective": "val_worst_recall"}),
        arms=arms,
        contrast={"oversampled": 1, "plain": -1},
        tuned=dict.fromkeys(arms, RATES),
        relevant=0.05,
    )
