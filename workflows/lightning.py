"""A LightningModule as it is, tuned by cvtune: augmentation strength, dropout and learning rate.

    uv run cvtune run workflows/lightning.py

`lightning_net.py` is plain Lightning; `lightning_loop.py` says which value of the recipe is which of its arguments.
Outside of this repository install `cvtune[lightning]`. Mind the names: in a folder with a file `lightning.py` Python
takes that for the package, so the module here imports `pytorch_lightning`, which is the same.

Time: TODO. Expect: TODO.
"""

from cvtune import Budget, Confirm, LogUniform, Recipe, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="lightning",
        data=Source(source="digits"),
        recipe=Recipe().replace(
            {
                "train.loop": "python:lightning_loop:train",
                "data.image_size": 16,
                "augment.flip": "none",  # a mirrored digit is another digit
                "max_epochs": 6,
            }
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 1),
                "regularize.dropout": Uniform(0, 0.5),
                "optim.lr": LogUniform(1e-3, 3e-2),
            }
        ),
        budget=Budget(trials=10),
        confirm=Confirm(top=1),
    )
