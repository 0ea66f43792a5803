"""Which class has each pixel? Both strengths and the learning rate for masks, of synthetic shapes or a folder of yours.

    uv run cvtune run workflows/segmentation.py

A folder with `images/` and `masks/`: `--set data.source=FOLDER --name NAME`. The settings suit micrographs, see
below. The first trial is a guess: a high rate and little of both strengths, because a small network that is trained for
few epochs hardly overfits.

Time: under four minutes on two quiet cores (measured: search, confirmation and report of the shapes in 3.7 minutes).
Expect: a mean IoU of 0.82 on 100 test images (0.845 and 0.785) for the first trial, the best of the search, and 0.57
for the default recipe. On 464 micrographs of nuclei (Data Science Bowl 2018) the search takes three and a half minutes
(12 trials, 56 epochs), six with three seeds and no baselines (`--set confirm.seeds=3 --set confirm.baselines=false`);
there the nucleus IoU on 100 test images was 0.77 (0.767, 0.772 and 0.772), again of the first trial.
"""

from cvtune import ASHA, Budget, Confirm, LogUniform, Recipe, Sobol, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="segmentation",
        data=Source(source="python:shapes:large"),
        recipe=Recipe().replace(
            {
                "data.image_size": 128,
                "data.batch_size": 8,  # few images, many labelled pixels in each: what is scarce is steps
                "augment.flip": "both",  # no side of a micrograph is up
                "model.name": "small_unet",
                "model.width": 8,
                "max_epochs": 12,
            }
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 0.6),
                "regularize.strength": Uniform(0, 0.6),
                "optim.lr": LogUniform(3e-3, 3e-2),
            }
        ),
        points=({"augment.strength": 0.15, "regularize.strength": 0.0, "optim.lr": 1e-2},),
        scheduler=ASHA(grace_epochs=2),
        searcher=Sobol(),
        budget=Budget(trials=12),
        objective="val_mean_iou",
        noise_seeds=0,
        confirm=Confirm(top=1, seeds=2),
    )
