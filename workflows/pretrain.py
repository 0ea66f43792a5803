"""A network for `transfer.py` to start from: the digits 0 to 4, of which there are many images.

    uv run cvtune run workflows/pretrain.py

Time: TIME. Expect: RESULT.
"""

from cvtune import ASHA, Budget, Confirm, LogUniform, Recipe, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="pretrain",
        data=Source(source="python:transfer_data:many"),
        recipe=Recipe().replace(
            {
                "data.image_size": 16,
                "augment.flip": "none",  # a mirrored digit is another digit
                "model.width": 8,
                "max_epochs": 9,
            }
        ),
        space=space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(3e-3, 3e-2)}),
        scheduler=ASHA(grace_epochs=3),
        budget=Budget(trials=6),
        noise_seeds=0,
        confirm=Confirm(top=0),
    )
