"""Does early stopping help against overfitting? Long training without any other remedy, with and without patience.

uv run cvtune advise DATA workflows/advice/early_stopping.py
"""

from advice_base import RATES, base

from cvtune.rule import Rule


def rule() -> Rule:
    arms = {"patient": {"patience": None}, "stopped": {"patience": 5}}
    return Rule(
        name="early_stopping",
        says="Ending a training that no longer improves beats going on, where nothing else is done.",
        study=base(max_epochs=40, augment__strength=0.0, regularize__strength=0.0, optim__schedule="constant"),
        arms=arms,
        contrast={"stopped": 1, "patient": -1},
        tuned=dict.fromkeys(arms, RATES),
    )
