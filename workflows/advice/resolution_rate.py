"""Does a higher resolution want a lower learning rate? Two rates, a factor of ten apart, at both sizes.

uv run cvtune advise DATA workflows/advice/resolution_rate.py
"""

from advice_base import FAST, SLOW, base, crossed

from cvtune.rule import Rule


def rule() -> Rule:
    sizes = {"small": {"data.image_size": 32}, "large": {"data.image_size": 64}}
    return Rule(
        name="resolution_rate",
        says="A higher resolution wants a lower rate: slow instead of fast gains more at 64 px than at 32.",
        study=base(),
        arms=crossed(sizes, {"slow": SLOW, "fast": FAST}),  # the rate is what is compared, so it is not tuned
        contrast={"large-slow": 1, "large-fast": -1, "small-slow": -1, "small-fast": 1},
    )
