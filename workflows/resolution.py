"""How large must the images be? Sizes are searched, each with rates and strengths that suit it; and one that grows.

    uv run cvtune run workflows/resolution.py

Whether a crop of a photo is out of focus (see `sharp_photos.py`) cannot be seen once it is made small. The space is
`cvtune.priors.resolution_space`: stronger regularization and lower rates at higher resolution. Each size has a decoded
store of its own. The candidate `growing` trains at 24 px first and ends at 64 px (progressive resizing); it is
confirmed beside `large`, which has 64 px from the start.

Time: two and a half minutes on two cores (measured, while the cores had other work: 143 s for 30 trials and 164 epochs,
confirmation included). Expect: no trial above 0.55 validation accuracy at 16 or 32 px, where the photo can be told but
not the focus; measured over three seeds, a test accuracy of 0.67 for `large` (64 px), 0.61 for `growing`, a difference
that 200 images do not show, and 0.54 for the best trial of the search, of 32 px: eight epochs are short, and ASHA stops
large images, which start slowly at their lower rates, after the first.
"""

from cvtune import Budget, Confirm, LogUniform, Recipe, Source, Study
from cvtune.priors import resolution_space

BASE = Recipe().replace(
    {
        "data.image_size": 64,
        "augment.quality": 0.0,  # blur would change the label
        "model.width": 8,
        "max_epochs": 8,
        "data.batch_size": 32,
    }
)


def study() -> Study:
    return Study(
        name="resolution",
        data=Source(source="python:sharp_photos:images"),
        recipe=BASE,
        space=resolution_space((16, 32, 64), lr=LogUniform(2e-3, 5e-2)),
        budget=Budget(trials=16),
        noise_seeds=2,
        candidates={
            "large": BASE,
            "growing": BASE.replace(
                {"data.image_size": 24, "changes": [[2, {"data.image_size": 40}], [4, {"data.image_size": 64}]]}
            ),
        },
        confirm=Confirm(top=1, seeds=3),
    )
