"""A LightningModule as it is, tuned by cvtune: augmentation strength, dropout and learning rate.

    uv run cvtune run workflows/lightning.py

`lightning_net.py` is plain Lightning; `lightning_loop.py` says which value of the recipe is which of its arguments.
Outside of this repository install `cvtune[lightning]`. Mind the names: in a folder with a file `lightning.py` Python
takes that for the package, so the module here imports `pytorch_lightning`, which is the same.

Time: two and a half minutes on two cores that other work kept busy (measured: 141 s, of which 134 s for the 68 epochs
of 16 trials). Expect: a test accuracy near 0.98 for the winner (measured: mean 0.980 over 3 seeds, 95 % interval 0.964
to 0.996), 0.08 above the default recipe (interval of the gain 0.03 to 0.13); the winner's rate was 0.008 (default
0.002), its augmentation strength 0.08 (default 0.3).
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
