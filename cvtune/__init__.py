"""cvtune finds the sweet spot between augmentation and regularization for vision models.

A workflow file needs only this module:

    from cvtune import ASHA, LogUniform, Study, Uniform, space
"""

from cvtune.epoch import Epoch
from cvtune.recipe import Augment, Data, Loss, Model, Optim, Recipe, Regularize
from cvtune.schedulers import ASHA, FIFO
from cvtune.searchers import Random
from cvtune.space import Choice, IntUniform, LogUniform, Space, Uniform, When, space
from cvtune.study import Budget, Resources, Source, Study

__version__ = "0.1.0"

__all__ = [
    "ASHA",
    "FIFO",
    "Augment",
    "Budget",
    "Choice",
    "Data",
    "Epoch",
    "IntUniform",
    "LogUniform",
    "Loss",
    "Model",
    "Optim",
    "Random",
    "Recipe",
    "Regularize",
    "Resources",
    "Source",
    "Space",
    "Study",
    "Uniform",
    "When",
    "space",
]
