"""A network for `transfer.py` to start from: the digits 0 to 6, of which there are many images.

    uv run cvtune run workflows/pretrain.py

Time: 43 s on two busy cores (measured; 4 trials, 36 epochs). Expect: a validation accuracy of 1.0.
"""

from cvtune import ASHA, Budget, Confirm, LogUniform, Recipe, Source, Study, space


def study() -> Study:
    return Study(
        name="pretrain",
        data=Source(source="python:transfer_data:many"),
        recipe=Recipe().replace(
            {
                "data.image_size": 16,
                "augment.flip": "none",  # a mirrored digit is another digit
                "model.width": 8,
                "max_epochs": 12,
                "augment.strength": 0.5,
            }
        ),
        space=space({"optim.lr": LogUniform(3e-3, 3e-2)}),
        scheduler=ASHA(grace_epochs=3),
        budget=Budget(trials=4),
        noise_seeds=0,
        confirm=Confirm(top=0),
    )
