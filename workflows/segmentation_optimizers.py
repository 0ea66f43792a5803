"""Is SGD's noise better than Adam for segmentation? Both tuned over their own ranges, then compared with an interval.

    uv run cvtune run workflows/segmentation_optimizers.py

Discs and squares on noise (see `shapes.py`), a small U-Net. The search draws each optimizer's rate and momentum from
its own range (`cvtune.priors.optimizer_space`). The answer is in the confirmation: `sgd` and `adam`, each at the best
values of a search of this space, are trained again with five seeds, and `best/comparison.json` has the interval of the
difference of their scores on the test images.

Time: TIME Expect: EXPECT
"""

from cvtune import Budget, Confirm, Recipe, Source, Space, Study, Uniform
from cvtune.priors import optimizer_space

BASE = Recipe().replace(
    {
        "data.image_size": 48,
        "augment.flip": "both",
        "model.name": "small_unet",
        "model.width": 8,
        "max_epochs": 12,
        "data.batch_size": 16,
    }
)
OPTIMIZERS = optimizer_space(("sgd", "adam"))


def study() -> Study:
    return Study(
        name="segmentation_optimizers",
        data=Source(source="python:shapes:images"),
        recipe=BASE,
        space=Space(domains={**OPTIMIZERS.domains, "augment.strength": Uniform(0, 0.6)}),
        budget=Budget(trials=24),
        candidates={
            "sgd": BASE.replace({"optim.name": "sgd", "optim.lr": 0.1, "optim.momentum": 0.9}),
            "adam": BASE.replace({"optim.name": "adam", "optim.lr": 3e-3}),
        },
        confirm=Confirm(top=1, seeds=5),
    )
