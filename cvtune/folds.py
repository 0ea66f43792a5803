"""One trial over its folds (`data.folds`), by the same names as `train.py`: Run, train, score_test.

For each fold the recipe trains a model of its own, from scratch and with a seed of its own, on the images of the other
folds, and is validated on the fold's. Within a fold everything is as without folds: rate schedule, `changes`,
`patience`, and a report after each epoch. The last report of a fold also says what the folds have come to, and only
that one is put to schedulers and searchers (`Study.is_judged`): their unit is the fold. The division is the same for
all trials, so trials that have finished as many folds were validated on the same images.

Any checkpoint holds the whole position: a trial that was killed goes on in its fold, after its last epoch. Whatever
trains within a fold (our own loop or the user's) does not know of folds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cvtune import own_loop
from cvtune import train as own_train
from cvtune.data import Dataset
from cvtune.data.folds import Folds
from cvtune.data.loader import derived_seed
from cvtune.epoch import Epoch, Score
from cvtune.evaluation import never
from cvtune.objective import is_exhausted
from cvtune.on_gpu import DEFAULT, OnGpu
from cvtune.recipe import Recipe


@dataclass(frozen=True)
class Terms:
    """What a study says beside the recipe: the seed of the division, and by what a fold is scored."""

    seed: int
    objective: str
    better: Literal["max", "min"]


class Run:
    """What changes while one recipe trains over its folds.

    Args:
        recipe: what to train, with `data.folds`.
        data: the images; training and validation ones are divided, `data.test` is for `score_test` alone.
        terms: see there.
        device, workers, divides, on_gpu: as in `train.Run`.

    Attributes:
        loop: the module that trains within a fold.
        inner: the run of the present fold (`train.Run`, or `own_loop.Run` where the loop is the user's).
        fold: its number, from 0.
        scores: of each finished fold the best objective.
        seen: the objective after each epoch of the present fold.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        terms: Terms,
        device: str | None = None,
        workers: int = 0,
        divides: bool = True,
        on_gpu: OnGpu = DEFAULT,
    ) -> None:
        assert recipe.data.folds is not None
        self.recipe, self.terms = recipe, terms
        self.folds = Folds(data, recipe.data.folds, terms.seed)
        self.loop: Any = own_train if recipe.train.loop is None else own_loop
        self._options: dict[str, Any] = {"device": device, "workers": workers}
        if recipe.train.loop is None:
            self._options |= {"divides": divides, "on_gpu": on_gpu}
        self.scores: list[float] = []
        self.seen: list[float] = []
        self.inner: Any = None
        self._begin(0, step=0)

    @property
    def data(self) -> Dataset:
        """The images of the present fold: its own are `val`; `test` is that of the study."""
        data: Dataset = self.inner.data
        return data

    @property
    def step(self) -> int:
        """Reports of this trial so far, over all folds."""
        return int(self.inner.step)

    @property
    def epoch(self) -> int:
        """Age of the present fold's weights."""
        return int(self.inner.epoch)

    @property
    def is_over(self) -> bool:
        """Whether the present fold is finished."""
        return len(self.scores) > self.fold

    def train(self, stop: Callable[[], bool]) -> Iterator[Epoch]:
        """Go on in the present fold to its end; the next one begins at the next call."""
        if self.is_over:
            self.seen = []
            self._begin(self.fold + 1, self.step)
        with contextlib.closing(self.loop.train(self.inner, stop)) as epochs:
            for epoch in epochs:
                yield self._told(epoch)
                if self.is_over:
                    return

    def close(self) -> None:
        """End what works beside the run; it trains no more."""
        if self.inner is not None:
            self.inner.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; nothing where the user's loop has no state."""
        inner = self.inner.state_dict()
        return {"fold": self.fold, "scores": self.scores, "seen": self.seen, "run": inner} if inner else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["fold"] != self.fold:
            self._begin(state["fold"], step=0)
        self.scores, self.seen = list(state["scores"]), list(state["seen"])
        self.inner.load_state_dict(state["run"])

    def _begin(self, fold: int, step: int) -> None:
        self.close()
        self.inner = None  # two models at once may not fit into memory
        seed = derived_seed(self.recipe.seed, fold)
        recipe = self.recipe.replace({"data.folds": None, "seed": seed})
        self.inner = self.loop.Run(recipe, self.folds[fold], **self._options)
        self.inner.step, self.fold = step, fold

    def _told(self, epoch: Epoch) -> Epoch:
        """A report with what is to be said of the folds."""
        sign = 1 if self.terms.better == "max" else -1
        self.seen.append(sign * float(getattr(epoch, self.terms.objective)))
        if self.epoch >= self.recipe.max_epochs or is_exhausted(self.seen, self.recipe.patience):
            self.scores.append(sign * max(self.seen))
        told: dict[str, Any] = {"fold": self.fold + 1, "folds": len(self.scores)}
        if self.is_over:
            sd = float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None
            told |= {"folds_mean": float(np.mean(self.scores)), "folds_sd": sd, "fold_scores": list(self.scores)}
        return dataclasses.replace(epoch, **told)


def train(run: Run, stop: Callable[[], bool] = never) -> Iterator[Epoch]:
    """Train `run` from where it stands to the end of its last fold, yielding one Epoch after each pass.

    The run may be saved whenever an Epoch was yielded. Ends without a report of the epoch that `stop` broke off.

    Raises:
        as `train.train` and `own_loop.train`.
    """
    while not (run.is_over and run.fold == run.folds.count - 1):
        before = run.step
        yield from run.train(stop)
        if run.step == before or not run.is_over:
            return


def score_test(run: Run, stop: Callable[[], bool] = never) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """What the present fold's weights make of `data.test`; see `evaluation.score_test`."""
    scored: tuple[dict[str, Score], dict[str, np.ndarray]] = run.loop.score_test(run.inner, stop)
    return scored
