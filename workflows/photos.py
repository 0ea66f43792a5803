"""A few thousand photos and no pretrained weights: which strengths and rate train a small network best?

    uv run cvtune run workflows/photos.py

It reads the folder `photos` (`photos/<class>/*.jpg`), or whatever `--set data.source=PHOTOS` names. The best recipe is
trained again with five fresh seeds. Baselines are left out: their time is worth more as seeds. Of few images there are
few batches, so batches are small; the first trial is a guess from which the search may depart in either direction.

Time: an hour on two cores that had several times as much other work (measured: 58 minutes, 15 trials and 339 epochs
of 1,769 photos of waste, TrashNet; 12 s an epoch, two trials at once, while little else ran). Expect: there a test
accuracy of 0.81 (five seeds, 0.794 to 0.823), which is 0.07 above a plain Ray Tune search whose winner is trained as
long; `cvtune/docs/results.md` has the numbers.
"""

from cvtune import ASHA, Budget, Confirm, LogUniform, Recipe, Sobol, Source, Study, Uniform, space

GUESS = {"augment.strength": 0.35, "regularize.strength": 0.05, "optim.lr": 3e-3}


def study() -> Study:
    return Study(
        name="photos",
        data=Source(source="photos"),
        recipe=Recipe().replace(
            {
                "data.image_size": 64,
                "data.fit": "squash",  # nothing at the sides of a photo is lost
                "data.batch_size": 32,  # of few images few batches: small ones leave more steps
                "model.width": 32,
                "max_epochs": 45,
                **GUESS,
            }
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 0.6),
                "regularize.strength": Uniform(0, 0.5),
                "optim.lr": LogUniform(1e-3, 1e-2),
            }
        ),
        points=(GUESS,),
        scheduler=ASHA(grace_epochs=3),
        searcher=Sobol(),
        budget=Budget(trials=10),
        objective="val_accuracy",
        noise_seeds=0,
        confirm=Confirm(top=1, seeds=5, baselines=False),
    )
