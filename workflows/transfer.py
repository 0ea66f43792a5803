"""How much do weights help that were trained on other classes, and how fast may they change?

    uv run cvtune run workflows/pretrain.py
    uv run cvtune run workflows/transfer.py

Two images each of the digits 7 to 9. The network starts from the best checkpoint of `studies/pretrain`, which knows
the digits 0 to 6, with a fresh last layer. How much slower than that layer the backbone learns
(`optim.backbone_lr_scale`), for how many epochs it rests (`model.freeze_epochs`) and the rate itself are searched. The
best is compared with one rate of 0.01 for all layers, with the weights and from scratch, five seeds each, on test
images that the search has not seen. Another study to start from: `CVTUNE_PRETRAINED=studies/NAME`.

Time: 29 s on two cores after `pretrain.py` (measured; 32 trials, 146 epochs). Expect: a clear gain. Measured on 427
test images: 0.885 with the weights and 0.617 from scratch, the difference within 0.066 and 0.470 with 95 % confidence.
What the search found (0.871: rate 0.07, scale 0.21, three frozen epochs) was not shown to differ from one rate for all.
"""

import os
from pathlib import Path

from cvtune import Budget, Choice, Confirm, LogUniform, Recipe, Source, Study, space
from cvtune.errors import ConfigError
from cvtune.history import load
from cvtune.study import read

PRETRAINED = Path(os.environ.get("CVTUNE_PRETRAINED", "studies/pretrain"))


def study() -> Study:
    tuned = Recipe().replace(
        {
            "data.image_size": 16,
            "data.batch_size": 3,
            "augment.flip": "none",
            "model.width": 8,
            "optim.lr": 1e-2,
            "max_epochs": 6,
        }
    )
    return Study(
        name="transfer",
        data=Source(source="python:transfer_data:few"),
        recipe=tuned.replace({"model.pretrained": str(weights())}),
        space=space(
            {
                "optim.lr": LogUniform(5e-3, 1e-1),
                "optim.backbone_lr_scale": LogUniform(0.03, 1),
                "model.freeze_epochs": Choice(0, 1, 3),
            }
        ),
        budget=Budget(trials=12),
        noise_seeds=0,
        confirm=Confirm(top=1, seeds=5),
        candidates={"scratch": tuned},
    )


def weights() -> Path:
    """The last checkpoint of the best trial of the study to start from."""
    if not (PRETRAINED / "study.json").is_file():
        raise ConfigError(
            f"there is no study {str(PRETRAINED)!r}. Run `cvtune run workflows/pretrain.py` first, or name the folder "
            "of another study in CVTUNE_PRETRAINED."
        )
    best = load(PRETRAINED).best(read(PRETRAINED / "study.json"))
    if best is None:
        raise ConfigError(f"no trial of {str(PRETRAINED)!r} has reported yet. Let it end first.")
    trial = PRETRAINED / "trials" / best[0].trial
    return max(trial.resolve().glob("*/checkpoints/[0-9]*"), key=lambda place: int(place.name))
