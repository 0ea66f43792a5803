"""Running a training loop of the user's own (`train.loop`), by the same names as `train.py`: Run, train, score_test.

The loop is a generator; what it yields is checked and becomes an Epoch, what it says of its state is saved like any
checkpoint. How to write one stands in `docs/own_loop.md`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from cvtune.augment import Pipeline
from cvtune.data import Dataset, Part
from cvtune.data.loader import Loader, derived_seed, evaluation_batch, evaluation_targets, report_order, subset
from cvtune.epoch import METRICS, Epoch, Score
from cvtune.errors import ConfigError, DataError
from cvtune.evaluation import EVALUATION_BATCH, Stopped, never
from cvtune.kinds import values_of
from cvtune.loops import Report, Terms, terms_of
from cvtune.normalize import normalizer_of
from cvtune.recipe import Recipe
from cvtune.regularize import resolve
from cvtune.tasks import RULES
from cvtune.train import peak_memory, seed_everything
from cvtune.usercode import load_function

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
EFFECTIVE = {  # metric: the value of the recipe that it equals where a loop honors that and reports nothing else
    "augment_strength": "augment.strength",
    "dropout": "regularize.dropout",
    "weight_decay": "regularize.weight_decay",
}


class Run:
    """One trial in the hands of the user's loop: all that the function is called with.

    Args:
        recipe: what to train; `train.loop` names the loop.
        data: the images; `data.test` is for `score_test` alone.
        device: "cuda" or "cpu"; None: a GPU where there is one.
        workers: processes that augment beside the training process; 0: none.

    Attributes:
        step: reports of this trial so far; seeds are set from it before each epoch.
        epoch: age of the weights; below `step` after the weights of a younger trial were taken over.
        images: training images per epoch.
        final: how images are scored: `data` at the size of the last epoch.
        values: what the numbers of the images mean.
        normalized: batches (N, S, S, C) -> float32 (N, C, S, S) on the CPU, as cvtune's own loop has them.
        state: what the last report of these weights carried, tensors on the CPU, tuples as lists; None: from scratch.
    """

    def __init__(self, recipe: Recipe, data: Dataset, device: str | None = None, workers: int = 0) -> None:
        self.data, self.device = data, device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.base, self.workers = recipe, workers
        self.terms: Terms = terms_of(str(recipe.train.loop))
        self.step, self.epoch = 0, 0
        self.state: Mapping[str, Any] | None = None
        self.stopped = False
        self.final = recipe.data.model_copy(update={"image_size": recipe.image_sizes[-1]})  # how images are scored
        window = recipe.data.window_low, recipe.data.window_high
        self.values = values_of(data.kind, data.stats, *window)
        self.normalized = normalizer_of(data, recipe, "cpu")
        self._used = subset(data.train.labels, recipe.data.train_fraction, recipe.seed)
        self.images = min(recipe.data.report_images or len(self._used), len(self._used))
        self._stop: Callable[[], bool] = never
        self._loader: Loader | None = None

    @property
    def recipe(self) -> Recipe:
        """The values of the present epoch, with a number in every knob of `regularize`. Read it in each epoch."""
        return resolve(self.base.at(self.epoch))

    def stop(self) -> bool:
        """Whether to return now, without a report. To be asked before every batch: it is also the sign of life."""
        self.stopped = self.stopped or self._stop()
        return self.stopped

    def batches(self) -> Batches:
        """The training images of the present epoch: augmented (N, S, S, C) and targets, on the CPU.

        Targets are those of `loader.Batch`: labels int64 (N,), tags float32 (N, K), or masks uint8 (N, S, S). In a
        fresh order, by all of `loops.BATCHES`. Asks `stop` before each batch and ends early when it says so.
        """
        now, labels = self.recipe, self.data.train.labels
        self._loader = self._loader or Loader(self.data.train, workers=self.workers, pin=self.device == "cuda")
        order = report_order(labels[self._used], now.seed, self.step, now.data.oversample, self.images)
        pipeline = Pipeline(now.augment, now.data.image_size, now.data.fit, self.values)
        seed = derived_seed(now.seed, self.step)
        for batch in self._loader.batches(self._used[order], now.data.batch_size, pipeline, seed):
            if self.stop():
                return
            yield batch.images, batch.targets

    def close(self) -> None:
        """End what works beside the run; it has no batches any more."""
        if self._loader is not None:
            self._loader.close()

    def evaluation(self, part: Part) -> Batches:
        """The images of a part (`run.data.val`) in their order, not augmented, see `final`; else as `batches`."""
        for start in range(0, len(part.labels), EVALUATION_BATCH):
            if self.stop():
                return
            rows = np.arange(start, min(start + EVALUATION_BATCH, len(part.labels)))
            shown = rows, self.final.image_size, self.final.fit
            yield torch.from_numpy(evaluation_batch(part.images, *shown)), evaluation_targets(part, *shown)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; nothing where the loop's last report carried no state."""
        if self.state is None:
            return {}
        return {"step": self.step, "epoch": self.epoch, "own": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.epoch, self.state = state["step"], state["epoch"], state["own"]


def train(run: Run, stop: Callable[[], bool] = never) -> Iterator[Epoch]:
    """Let the user's loop train from where `run` stands to `max_epochs`, yielding one Epoch after each of its reports.

    The run may be saved whenever an Epoch was yielded. Once `stop` has said so, nothing more is reported.

    Raises:
        ConfigError: the loop is no generator, yields something else than `report_epoch(...)` or an Epoch that follows
            the last, or ends before `max_epochs` although nobody stopped it.
    """
    ref, run._stop = str(run.base.train.loop), stop
    made = load_function(ref, "train.loop")(run)
    if not isinstance(made, Iterator):
        raise ConfigError(f"train.loop = {ref!r} returned {type(made).__name__}. It must yield report_epoch(...).")
    try:
        while run.epoch < run.base.max_epochs:
            started = time.perf_counter()
            seed_everything(run.base.seed, run.step)
            said = next(made, None)
            if run.stopped:
                return
            if said is None:
                raise ConfigError(
                    f"train.loop = {ref!r} ended after epoch {run.epoch}, but max_epochs = {run.base.max_epochs} and "
                    "run.stop() had not said so. Loop `while True:`; schedulers and `patience` end a trial early."
                )
            yield _accept(run, said, time.perf_counter() - started)
    finally:
        if hasattr(made, "close"):
            made.close()


def score_test(run: Run, stop: Callable[[], bool] = never) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """What the loop's `predict` makes of `data.test`; see `evaluation.score_test`.

    Raises:
        DataError: there are no test images.
        ConfigError: the loop has no `predict`, or it gave something else than logits.
        Stopped: `stop` said so.
    """
    part, final = run.data.test, run.final
    if not len(part.labels):
        raise DataError("There are no test images to score. Give the data a test part, or set data.test_share above 0.")
    if run.terms.predict is None:
        raise ConfigError(f"train.loop = {run.base.train.loop!r} offers no predict: see @cvtune.loop(predict=...).")
    run._stop = stop
    with torch.inference_mode():
        logits = torch.as_tensor(run.terms.predict(run, part)).detach().float().cpu()
    if run.stopped:
        raise Stopped
    sides = (final.image_size, final.image_size) if part.masks is not None else ()
    wanted = (len(part.labels), len(run.data.classes), *sides)
    if tuple(logits.shape) != wanted:
        raise ConfigError(
            f"train.loop = {run.base.train.loop!r}: predict gave scores of shape {tuple(logits.shape)} for "
            f"{wanted[0]} images of {wanted[1]} classes. Give {wanted}: one row per image, in their order."
        )
    sums = RULES[run.data.task].sums()
    sums.add(logits, evaluation_targets(part, np.arange(wanted[0]), final.image_size, final.fit))
    return {f"test_{name}": value for name, value in sums.scores().items()}, sums.stored()


def rehearse(recipe: Recipe, data: Dataset, metrics: set[str], pauses: bool) -> None:
    """Try a loop on few images: one report, a second one from its state in a fresh Run, and `predict`.

    Args:
        recipe: with `max_epochs` of at least 2.
        data: few images.
        metrics: those that the study needs from each report.
        pauses: whether the scheduler pauses trials, which then need a state.

    Raises:
        ConfigError: the loop breaks a rule of `docs/own_loop.md`.
    """
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return False

    ref, run = recipe.train.loop, Run(recipe, data, device="cpu")
    epochs = train(run, stop)
    numbers = next(epochs).numbers()
    state = copy.deepcopy(run.state_dict())  # before the loop goes on
    epochs.close()  # type: ignore[attr-defined]
    if not asked:
        raise ConfigError(f"train.loop = {ref!r} never asked run.stop(). Ask it before every batch.")
    for name in sorted(metrics):
        if numbers[name] is None:
            raise ConfigError(f"train.loop = {ref!r} does not report {name}, which the study compares trials by.")
    if pauses and not state:
        raise ConfigError(
            f"train.loop = {ref!r} reports no state, but this scheduler pauses trials and takes them up again. Yield "
            "report_epoch(..., state={...}), or choose scheduler.name = 'asha' or 'fifo'."
        )
    if state:
        again = Run(recipe, data, device="cpu")
        again.load_state_dict(state)
        if next(train(again), None) is None:
            raise ConfigError(f"train.loop = {ref!r} made no report from the state of its first.")
    if run.terms.predict is not None:
        score_test(run)


def _accept(run: Run, said: object, seconds: float) -> Epoch:
    """The Epoch of what a loop yielded; `run` moves on by one report."""
    if isinstance(said, Epoch):
        if said.step != run.step + 1 or said.epoch != run.epoch + 1:
            raise ConfigError(
                f"train.loop = {run.base.train.loop!r} yielded step {said.step}, epoch {said.epoch} after step "
                f"{run.step}, epoch {run.epoch}. Count on by one, or yield report_epoch(...), which counts by itself."
            )
        epoch, state = said, None
    elif isinstance(said, Report):
        values: dict[str, Any] = dict.fromkeys(METRICS)
        effective = run.recipe.flat()
        values |= {metric: effective[name] for metric, name in EFFECTIVE.items() if name in run.terms.honors}
        values |= {"seconds": seconds, "peak_memory": peak_memory(torch.device(run.device))}
        values |= {**said.metrics, "step": run.step + 1, "epoch": run.epoch + 1}
        epoch, state = Epoch(**values), said.state
    else:
        raise ConfigError(
            f"train.loop = {run.base.train.loop!r} yielded {type(said).__name__}. Yield "
            "cvtune.report_epoch(train_loss=..., val_loss=..., val_accuracy=...) after each epoch."
        )
    _check_plain(state, "state")
    run.step, run.epoch, run.state = epoch.step, epoch.epoch, state
    return epoch


def _check_plain(node: object, where: str) -> None:
    """Refuse what a checkpoint cannot hold."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not isinstance(key, str | int | float | bool | None):
                raise ConfigError(f"report_epoch(state=...): the key {key!r} of {where} is neither text nor a number.")
            _check_plain(value, f"{where}[{key!r}]")
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            _check_plain(value, f"{where}[{place}]")
    elif not (node is None or isinstance(node, torch.Tensor | str | bool | int | float)):
        raise ConfigError(
            f"report_epoch(state=...): {where} is {type(node).__name__}. Use dicts, lists, tensors, numbers and "
            "strings: state_dict() of a model, torch.from_numpy() of an array."
        )
