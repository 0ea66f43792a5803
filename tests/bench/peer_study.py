"""The peers' search as a study of ours: their model, augmentation, space, batch size, optimizer and ASHA.

    uv run cvtune run tests/bench/peer_study.py --set data.source=FOLDER

Time: several minutes on two cores. Expect: a table of 16 trials, most of them stopped early. FOLDER holds
train/<class>/* and val/<class>/*. `ruler.py` runs this against the peers.
"""

from cvtune import ASHA, Budget, LogUniform, Recipe, Resources, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="peer_study",
        data=Source(test_share=0),  # the peers train on all of train
        recipe=Recipe().replace(
            {
                "data.image_size": 64,
                "data.batch_size": 64,
                "data.fit": "squash",
                "model.name": "python:peer_parts:model",
                "augment.policy": "python:peer_parts:pipeline",
                "regularize.strength": None,
                "optim.name": "adamw",
                "optim.schedule": "constant",
                "optim.warmup_epochs": 0,
                "max_epochs": 9,
            }
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 1),
                "optim.lr": LogUniform(3e-4, 3e-2),
                "regularize.dropout": Uniform(0, 0.6),
                "regularize.weight_decay": LogUniform(1e-5, 1e-1),
            }
        ),
        scheduler=ASHA(grace_epochs=1, reduction_factor=3),
        budget=Budget(trials=16),
        resources=Resources(cpu=1),
    )
