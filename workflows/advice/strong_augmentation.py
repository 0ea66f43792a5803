"""Does strong augmentation let regularization go down? Light against heavy regularization, at both strengths.

    uv run cvtune advise DATA workflows/advice/strong_augmentation.py

On 900 images of Fashion-MNIST undecided: +0.018, 95 % interval -0.012 to +0.048, 8 units; 22 would decide. 27 minutes
on two busy cores. `cvtune/docs/rules.md` has the command, all scores and the plot.
"""

from advice_base import HEAVY, LIGHT, RATES, STRONG, WEAK, base, crossed

from cvtune.rule import Rule


def rule() -> Rule:
    arms = crossed({"weak": WEAK, "strong": STRONG}, {"light": LIGHT, "heavy": HEAVY})
    return Rule(
        name="strong_augmentation",
        says="Strong augmentation lets regularization go down: light instead of heavy gains more than with weak one.",
        study=base(),
        arms=arms,
        contrast={"strong-light": 1, "strong-heavy": -1, "weak-light": -1, "weak-heavy": 1},
        tuned=dict.fromkeys(arms, RATES),
    )
