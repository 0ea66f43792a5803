"""Is SGD's noise better than Adam for segmentation? Both are tuned over their own ranges, then compared with seeds.

    uv run cvtune run workflows/segmentation_optimizers.py

Discs and bars on noise (see `shapes.py`), a small U-Net. The search draws each optimizer's rate and momentum from
its own range (`cvtune.priors.optimizer_space`), evenly (Sobol), and stops nobody: SGD starts slower. Then the best
recipe of each (`confirm.per`) is trained again with five fresh seeds. The answer, with a 95 % interval of the
difference on test images, ends the run and stands in `best/comparison.json`; recipes go by the number of their trial,
which `cvtune status segmentation_optimizers` and the table `trials` tell the optimizer of.

Time: four and a half minutes on two quiet cores (measured: 259 s, 36 trials and 576 epochs). Expect: here it is not.
Measured over five seeds on 100 test images: a mean IoU of 0.760 for Adam at its best rate (0.019) and 0.628 for SGD
(0.40, momentum 0.92), a difference between 0.054 and 0.210 with 95 % confidence; 0.477 for untuned SGD. Sixteen epochs
are few: SGD still tells discs from bars badly when its rate has fallen.
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
