"""Population-based training: both strengths and the learning rate change while eight trials train.

    uv run cvtune run workflows/pbt.py

The result is a schedule, not a point: which strength at which epoch, along the lineage of the winner's weights. It is
in `studies/pbt/schedule.json`, as a plot in `schedule.html`, and `workflows/replay.py` asks whether it was worth it.

Time: three minutes on two cores (measured: 175 s for 144 epochs of the population, 54 of the default recipe and 162 to
confirm). Expect: a test accuracy near 0.993 for the schedule, and a tie with the default recipe: digits are easy.
"""

from cvtune import PBT, Budget, LogUniform, Recipe, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="pbt",
        data=Source(source="digits"),
        recipe=Recipe().replace(
            {
                "data.image_size": 16,
                "augment.flip": "none",  # a mirrored digit is another digit
                "model.width": 8,
                "max_epochs": 18,
            }
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 1),
                "regularize.strength": Uniform(0, 1),
                "optim.lr": LogUniform(1e-3, 3e-2),
            }
        ),
        scheduler=PBT(interval_epochs=2),
        budget=Budget(trials=8),
    )
