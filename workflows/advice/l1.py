"""Does L1 help, where many features may be irrelevant? Its weight is tuned with the rate.

uv run cvtune advise DATA workflows/advice/l1.py
"""

from advice_base import RATES, base

from cvtune import LogUniform, space
from cvtune.rule import Rule


def rule() -> Rule:
    return Rule(
        name="l1",
        says="L1 regularization at its best weight beats none.",
        study=base().set({"budget.trials": 8}),
        arms={"without": {"regularize.l1": 0.0}, "with": {"regularize.l1": 1e-6}},
        contrast={"with": 1, "without": -1},
        tuned={"without": RATES, "with": space({**RATES.domains, "regularize.l1": LogUniform(1e-8, 1e-4)})},
    )
