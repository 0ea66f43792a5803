"""Regularization knobs from one strength: which knob gets what, as one plain table. Needs no torch.

`MAPPING_VERSION` rises whenever the table changes, since a strength then means something else.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping

from cvtune.recipe import FIELDS, Recipe

MAPPING_VERSION = 1
DECAY_PER_STEP = 1e-3  # share of every weight that strength 1 removes in one step at the peak rate

BUNDLE: Mapping[str, Callable[[float, float], float]] = types.MappingProxyType(
    {  # knob: (strength, peak learning rate, scaled with the batch) -> value
        "dropout": lambda s, lr: 0.5 * s,
        "spatial_dropout": lambda s, lr: 0.2 * s,
        "drop_path": lambda s, lr: 0.2 * s,
        "label_smoothing": lambda s, lr: 0.15 * s,
        "weight_decay": lambda s, lr: min(DECAY_PER_STEP * s**2 / lr, FIELDS["regularize.weight_decay"].high or 0.0),
        "l2": lambda s, lr: 0.0,
        "l1": lambda s, lr: 0.0,
    }
)


def bundle(recipe: Recipe) -> dict[str, float]:
    """The value that `regularize.strength` gives each knob; all zero when the strength is None.

    At strength 1 each knob stands at the upper end of what published recipes use: dropout 0.5 before the
    last layer (Srivastava et al. 2014), 0.2 of channels and of the deepest branch (Tompson et al. 2015,
    Huang et al. 2016), label smoothing 0.15 (0.1 is common, Szegedy et al. 2016).
    Decoupled decay multiplies a weight by 1 - lr x weight_decay per step. Strength therefore fixes that
    product, 1e-3 x strength^2, and not weight_decay: one strength shrinks weights alike at every learning
    rate, and a search over both does not see a ridge. It is squared because useful decays span magnitudes.
    l2 and l1 stay 0: they would double the decay or prune, which one asks for by name.
    """
    strength = recipe.regularize.strength or 0.0
    return {knob: value(strength, recipe.peak_lr) for knob, value in BUNDLE.items()}


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with a number in every knob of `regularize`: those set by hand kept, the rest by `bundle`.

    Resolving twice changes nothing. Values that change in mid-training are applied before: the knobs of an
    epoch are those of `resolve(recipe.at(epoch))`.
    """
    knobs = {k: v for k, v in bundle(recipe).items() if getattr(recipe.regularize, k) is None}
    return recipe.replace({f"regularize.{knob}": value for knob, value in knobs.items()}) if knobs else recipe


def explicit(recipe: Recipe) -> set[str]:
    """Names (without section) of the knobs set by hand: those whose number is not the one of `bundle`.

    So it answers alike for a recipe and for its resolved form.
    """
    return {k for k, v in bundle(recipe).items() if getattr(recipe.regularize, k) not in (None, v)}


def number(knob: float | None) -> float:
    """A knob of a resolved recipe as a float.

    Raises:
        TypeError: the knob is None, which means that the caller forgot `resolve`.
    """
    if knob is None:
        raise TypeError("a regularization knob is None: pass resolve(recipe), not the recipe itself")
    return knob
