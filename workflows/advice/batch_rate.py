"""Do smaller batches want a lower learning rate?

    uv run cvtune advise DATA workflows/advice/batch_rate.py

On 2,062 photos of sign digits supported: +0.266, 95 % interval +0.210 to +0.322, 6 units; in 8 epochs, of which a large
batch makes few steps. 12 minutes on two busy cores. `cvtune/docs/rules.md` has the command, all scores and the plot.
"""

from advice_base import FAST, SLOW, base, crossed

from cvtune.rule import Rule


def rule() -> Rule:
    sizes = {"small": {"data.batch_size": 16}, "large": {"data.batch_size": 128}}
    return Rule(
        name="batch_rate",
        says="Smaller batches want a lower rate: slow instead of fast gains more with 16 images than with 128.",
        study=base(),
        arms=crossed(sizes, {"slow": SLOW, "fast": FAST}),
        contrast={"small-slow": 1, "small-fast": -1, "large-slow": -1, "large-fast": 1},
    )
