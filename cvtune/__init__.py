"""cvtune finds the sweet spot between augmentation and regularization for vision models.

A workflow file needs only this module:

    from cvtune import ASHA, LogUniform, Study, Uniform, space
"""

import os

# Read when Ray is imported, by whomever. Under `uv run` Ray would start every worker through uv and upload the
# working directory.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
# Read when albumentations is imported, which a user's own code may do: else it asks the network for updates.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from cvtune.epoch import Epoch
from cvtune.loops import BATCHES, Report, loop, report_epoch
from cvtune.recipe import Augment, Data, Loss, Model, Optim, Recipe, Regularize, Train
from cvtune.schedulers import ASHA, FIFO, PB2, PBT, HyperBand, Median, Promotion
from cvtune.searchers import GP, TPE, Grid, Random, Sobol
from cvtune.sections import Budget, Confirm, Resources, Source, Tracking
from cvtune.space import Choice, IntUniform, LogUniform, PerChoice, Space, Uniform, When, space
from cvtune.study import Study

__version__ = "0.1.0"

__all__ = [
    "ASHA",
    "BATCHES",
    "FIFO",
    "GP",
    "PB2",
    "PBT",
    "TPE",
    "Augment",
    "Budget",
    "Choice",
    "Confirm",
    "Data",
    "Epoch",
    "Grid",
    "HyperBand",
    "IntUniform",
    "LogUniform",
    "Loss",
    "Median",
    "Model",
    "Optim",
    "PerChoice",
    "Promotion",
    "Random",
    "Recipe",
    "Regularize",
    "Report",
    "Resources",
    "Sobol",
    "Source",
    "Space",
    "Study",
    "Tracking",
    "Train",
    "Uniform",
    "When",
    "loop",
    "report_epoch",
    "space",
]
