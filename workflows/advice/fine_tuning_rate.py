"""Does fine-tuning want a lower learning rate than training from scratch?

    CVTUNE_WEIGHTS=torchvision uv run cvtune advise DATA workflows/advice/fine_tuning_rate.py

CVTUNE_WEIGHTS is a value of `model.pretrained`: a file of weights for `torchvision:resnet18`, or `torchvision` for the
published ones (`cvtune fetch` brings them).
"""

import os

from advice_base import base, crossed

from cvtune.rule import Rule


def rule() -> Rule:
    weights = os.environ.get("CVTUNE_WEIGHTS")
    says = "Fine-tuning wants a lower rate: slow instead of fast gains more than from scratch."
    if weights is None:
        return Rule(
            name="fine_tuning_rate",
            says=says,
            untestable="there are no weights to fine-tune. Name some in CVTUNE_WEIGHTS.",
        )
    starts = {"scratch": {}, "tuned": {"model.pretrained": weights}}
    return Rule(
        name="fine_tuning_rate",
        says=says,
        study=base(model__name="torchvision:resnet18"),
        arms=crossed(starts, {"slow": {"optim.lr": 1e-4}, "fast": {"optim.lr": 3e-3}}),
        contrast={"tuned-slow": 1, "tuned-fast": -1, "scratch-slow": -1, "scratch-fast": 1},
    )
