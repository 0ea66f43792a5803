"""The learning-rate range test: one model, a rate that rises step by step, and the range that its loss speaks for.

Smith, Cyclical learning rates for training neural networks, WACV 2017; the rise is exponential and the loss smoothed as
in fastai's `lr_find`. Everything but the rate is what the recipe says, and the steps are those of `train.one_pass`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cvtune.data import Dataset
from cvtune.errors import ConfigError
from cvtune.evaluation import never
from cvtune.priors import RATES
from cvtune.recipe import Recipe
from cvtune.regularize import resolve
from cvtune.space import Choice, LogUniform
from cvtune.study import Study
from cvtune.train import Run, one_pass, seed_everything

STEPS = 200  # optimizer steps from the lowest rate to the highest
BELOW, ABOVE = 30.0, 30.0  # where the rise begins and ends: so many times beyond the optimizer's range in RATES
SMOOTHING = 0.9  # of the exponential moving average of the loss; fastai's 0.98 lags by 50 steps, this one by 10
DIVERGED = 4.0  # times the least smoothed loss, at which the test ends (fastai's number)
SPAN = 30.0  # highest rate of a suggestion over its lowest
FELL = 0.03  # share by which the smoothed loss must have fallen for its minimum to mean anything

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Curve:
    """What a range test of one optimizer measured.

    Attributes:
        rates: of each step, rising.
        losses: of the batch at each step, before the step; not finite only in the last one.
    """

    optimizer: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> tuple[float, ...]:
        """The losses as a moving average, corrected for its start."""
        return tuple(_smoothed(self.losses))

    @property
    def turn(self) -> int:
        """The step at which the smoothed loss was least."""
        return int(np.argmin(np.nan_to_num(self.smoothed, nan=np.inf)))

    def suggestion(self) -> LogUniform:
        """The range that ends where the loss was least and begins SPAN below.

        At the least loss the rate already undoes what it gains: the best rate of a training lies below, by a factor of
        3 to 10 as a rule of thumb (fastai suggests a tenth), which is in the middle of this range.

        Raises:
            ConfigError: the loss did not fall at any rate.
        """
        smoothed = self.smoothed
        if not min(smoothed) < (1 - FELL) * max(smoothed[: self.turn + 1]):
            raise ConfigError(
                f"the loss fell at no rate from {self.rates[0]:.2g} to {self.rates[-1]:.2g} ({self.optimizer}): it "
                f"began at {smoothed[0]:.4g} and was never below {min(smoothed):.4g}. Give it more --steps, look at "
                "the labels (`cvtune check`), or unfreeze the model (model.freeze_epochs)."
            )
        high = float(f"{self.rates[self.turn]:.2g}")
        return LogUniform(float(f"{high / SPAN * 1.001:.3g}"), high)


def optimizers(study: Study) -> tuple[str, ...]:
    """The optimizers that a study may use: each has rates of its own."""
    domain = study.space.domains.get("optim.name")
    if isinstance(domain, Choice):
        return tuple(str(name) for name in domain.values)
    return (study.recipe.optim.name,)


def range_test(
    recipe: Recipe, data: Dataset, steps: int = STEPS, progress: Progress = lambda *_: None, device: str | None = None
) -> Curve:
    """Train a fresh model of `recipe` for `steps` optimizer steps, each at a higher rate than the one before.

    Ends early where the loss is DIVERGED times its least, or not finite.

    Args:
        recipe: its optimizer decides which rates are tried.
        steps: 20 or more.
        progress: told what is done, steps done, and steps in all.

    Raises:
        ConfigError: the recipe trains by a loop of the user's own, whose steps are not ours.
    """
    if recipe.train.loop is not None:
        raise ConfigError(
            f"train.loop = {recipe.train.loop!r}: a range test sets the rate of every step, and this loop is yours. "
            "Leave it out with --set train.loop=null, or test the rate in the loop."
        )
    name = recipe.optim.name
    rates = np.geomspace(RATES[name].low / BELOW, min(RATES[name].high * ABOVE, 100.0), steps).tolist()
    losses: list[float] = []
    least = math.inf
    for loss in _losses(recipe, data, rates, device):
        losses.append(loss)
        progress(f"{name}: rate {rates[len(losses) - 1]:.1e}", len(losses), steps)
        smoothed = _smoothed(losses)[-1]
        least = min(least, smoothed) if math.isfinite(smoothed) else least
        if not math.isfinite(loss) or smoothed > DIVERGED * least:
            break
    return Curve(name, tuple(rates[: len(losses)]), tuple(losses))


def _losses(recipe: Recipe, data: Dataset, rates: list[float], device: str | None) -> Iterator[float]:
    """The training loss of the batch of each step, with the strengths of the first epoch."""
    steady = recipe.replace({"optim.schedule": "constant", "optim.warmup_epochs": 0.0, "changes": ()})
    run = Run(steady, data, device)
    run.images = min(run.images, recipe.data.batch_size * recipe.optim.accumulate)  # a pass is one step
    run.model.freeze_backbone(recipe.model.freeze_epochs > 0)
    for rate in rates:
        now = resolve(steady.replace({"optim.lr": rate}))
        run.apply(now)
        yield one_pass(run, now, seed_everything(recipe.seed, run.step), never).loss
        run.step += 1  # the next images, other augmentation


def _smoothed(losses: list[float] | tuple[float, ...]) -> list[float]:
    average, made = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        made.append(average / (1 - SMOOTHING**step))
    return made
