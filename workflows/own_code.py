"""Your own model, data source, transform and loss, searched like everything else.

    uv run cvtune run workflows/own_code.py

Time: about half a minute on two cores. Expect: a validation accuracy near 1 on stripes made in `own_functions.py`.
A change of the functions' source is noticed: the study then has to be run under another name.
"""

from cvtune import Budget, Choice, LogUniform, Recipe, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="own_code",
        data=Source(source="python:own_functions:images"),
        recipe=Recipe().replace(
            {"data.image_size": 16, "augment.policy": "python:own_functions:transform", "max_epochs": 4}
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 1),
                "optim.lr": LogUniform(1e-3, 1e-1),
                "model.name": Choice("small_resnet", "python:own_functions:model"),
                "loss.name": Choice("cross_entropy", "python:own_functions:loss"),
            }
        ),
        budget=Budget(trials=8),
    )
