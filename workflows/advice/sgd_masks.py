"""Is SGD's noise better than Adam for masks? Each with rate and momentum tuned over its own range.

    uv run cvtune advise DATA workflows/advice/sgd_masks.py

On 664 photos of nuclei SGD lost 0.018 of mean IoU to Adam, 95 % interval 0.005 to 0.032, 6 units: undecided, being as
large as what matters. 17 minutes on two busy cores. `cvtune/docs/rules.md` has the command, all scores and the plot.
"""

from advice_base import base

from cvtune import space
from cvtune.priors import MOMENTA, RATES
from cvtune.rule import Rule


def rule() -> Rule:
    return Rule(
        name="sgd_masks",
        says="SGD's noise beats Adam on masks.",
        study=base(model__name="small_unet", model__width=8, data__batch_size=8),
        arms={"sgd": {"optim.name": "sgd"}, "adam": {"optim.name": "adam"}},
        contrast={"sgd": 1, "adam": -1},
        tuned={
            "sgd": space({"optim.lr": RATES["sgd"], "optim.momentum": MOMENTA["sgd"]}),
            "adam": space({"optim.lr": RATES["adam"]}),
        },
    )
