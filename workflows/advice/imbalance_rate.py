"""Does imbalance want a lower learning rate?

uv run cvtune advise DATA workflows/advice/imbalance_rate.py
"""

from cvtune.rule import Rule


def rule() -> Rule:
    return Rule(
        name="imbalance_rate",
        says="Imbalanced classes want a lower rate than balanced ones.",
        untestable="it compares a set with one that differs from it in the shares of its classes only.",
    )
