"""Is SGD's noise better than Adam for segmentation? Both are tuned over their own ranges, then compared with seeds.

    uv run cvtune run workflows/segmentation_optimizers.py

Discs and bars on noise (see `shapes.py`), a small U-Net. The search draws each optimizer's rate and momentum from
its own range (`cvtune.priors.optimizer_space`), evenly (Sobol), and stops nobody: SGD starts slower. Then the best
recipe of each (`confirm.per`) is trained again with five fresh seeds. The answer, with a 95 % interval of the
difference on test images, ends the run and stands in `best/comparison.json`; recipes go by the number of their trial,
which `cvtune status segmentation_optimizers` and the table `trials` tell the optimizer of.

Time: ten minutes on two cores that had several times as much other work (measured: 592 s, 36 trials and 360 epochs).
Expect: undecided. Measured over five seeds on 100 test images: a mean IoU of 0.469 for Adam at its best rate (0.013)
and 0.456 for SGD (0.13, momentum 0.85), the difference within -0.12 and 0.15 with 95 % confidence. At these rates,
each the best of eight, one seed in five of either fails (0.30). Time and numbers are of a run whose default recipe
was AdamW at 2e-3; with the present one, untuned SGD, it has not been run as a whole.
"""

from cvtune import FIFO, Budget, Confirm, Recipe, Sobol, Source, Study
from cvtune.priors import optimizer_space


def study() -> Study:
    return Study(
        name="segmentation_optimizers",
        data=Source(source="python:shapes:images"),
        recipe=Recipe().replace(
            {
                "data.image_size": 48,
                "data.batch_size": 8,
                "augment.flip": "both",
                "augment.strength": 0.15,
                "regularize.strength": 0.1,
                "model.name": "small_unet",
                "model.width": 8,
                "optim.name": "sgd",  # the baseline: SGD as whoever only changes the name of the optimizer gets it
                "max_epochs": 16,
            }
        ),
        space=optimizer_space(("sgd", "adam")),
        scheduler=FIFO(),
        searcher=Sobol(),
        budget=Budget(trials=16),
        noise_seeds=0,
        confirm=Confirm(top=1, per="optim.name", seeds=5),
    )
