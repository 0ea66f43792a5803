"""What the weights of a run make of images that are not augmented: metrics, logits, what is kept of test images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from cvtune import strips
from cvtune.data import Part
from cvtune.data.loader import evaluation_batch, evaluation_targets
from cvtune.device import allowed_bytes
from cvtune.epoch import METRICS, Score
from cvtune.errors import DataError
from cvtune.kinds import shown
from cvtune.normalize import Normalizer
from cvtune.probe_set import Said
from cvtune.recipe import Data
from cvtune.tasks import Sums

if TYPE_CHECKING:
    from cvtune.train import Run

EVALUATION_BATCH = 256
VAL = tuple(name for name in METRICS if name.startswith("val_"))


class Stopped(Exception):
    """Raised between two batches because `stop` said so."""


class Seen:
    """Images as evaluation sees them. On a GPU they stay, so that those of every epoch are made and copied once."""

    SHARE = 0.1  # of the GPU's memory that this process may use, at most

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[tuple[int, bytes], torch.Tensor] = {}
        self._room = self.SHARE * allowed_bytes(device) if device.type == "cuda" else 0.0

    def batch(self, part: Part, rows: np.ndarray, data: Data) -> torch.Tensor:
        """The images at `rows` of a part that lives as long as this, (N, S, S, C); on the device where they stay."""
        key = id(part.images), rows.tobytes()
        if key in self._held:
            return self._held[key]
        batch = torch.from_numpy(evaluation_batch(part.images, rows, data.image_size, data.fit))
        if batch.nbytes <= self._room:
            self._room -= batch.nbytes
            self._held[key] = batch = batch.to(self._device)
        return batch


def never() -> bool:
    """The `stop` of a run that nobody stops."""
    return False


def evaluate(run: Run, stop: Callable[[], bool] = never) -> dict[str, Any]:
    """`clean_*`, `val_*`, `probe_*` of an Epoch for the current weights, by name; None: the task does not have it.

    Raises:
        Stopped: `stop`, asked before every batch, said so.
    """
    clean = summed(run, run.data.train, stop, run.clean).scores()
    sums, start, said = run.task.sums(), 0, list[Said]()
    for logits, targets in predictions(run, run.data.val, stop, None):
        sums.add(logits, targets)
        mine = run.probe.within(start)
        said.append(run.task.said(logits[mine], targets[mine]))
        start += len(logits)
    scores: dict[str, Any] = dict.fromkeys(VAL) | {f"clean_{name}": clean[name] for name in ("loss", "accuracy")}
    return scores | {f"val_{name}": value for name, value in sums.scores().items()} | run.probe.look(said)


def clean_loss(run: Run, stop: Callable[[], bool] = never) -> float | None:
    """`clean_loss` of an Epoch for the current weights.

    Raises:
        Stopped: `stop`, asked before every batch, said so.
    """
    loss = summed(run, run.data.train, stop, run.clean).scores()["loss"]
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def score_test(run: Run, stop: Callable[[], bool] = never) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """What the current weights make of `data.test`: for the report at the end, no search looks at it.

    Returns:
        The metrics of the task by name (test_loss, test_accuracy, ...); and what is kept of the images in their order,
        see `stored` of the task's `Sums`.

    Raises:
        DataError: there are no test images.
        Stopped: `stop`, asked before every batch, said so.
    """
    if not len(run.data.test.labels):
        raise DataError("There are no test images to score. Give the data a test part, or set data.test_share above 0.")
    sums = summed(run, run.data.test, stop)
    return {f"test_{name}": value for name, value in sums.scores().items()}, sums.stored()


def summed(run: Run, part: Part, stop: Callable[[], bool] = never, indices: np.ndarray | None = None) -> Sums:
    """What the evaluation of the images at `indices` (None: of all) adds up to. Sets `run.image_ms`.

    Raises:
        Stopped: `stop`, asked before every batch, said so.
    """
    sums = run.task.sums()
    for logits, targets in predictions(run, part, stop, indices):
        sums.add(logits, targets)
    return sums


def predict(
    run: Run, part: Part, stop: Callable[[], bool] = never, indices: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets, on the CPU, of the images at `indices` (None: of all); see `predictions`."""
    logits, targets = zip(*predictions(run, part, stop, indices), strict=True)
    return torch.cat(logits).cpu(), torch.cat(targets)


def strip_of(run: Run, count: int) -> Image.Image | None:
    """A picture of what the current weights make of `count` validation images, see `strips.py`; None of no images."""
    part, data = run.data.val, run.final
    chosen = strips.choose(part.labels, count)
    if not len(chosen):
        return None
    logits, targets = predict(run, part, indices=chosen)
    images = evaluation_batch(part.images, chosen, data.image_size, data.fit)
    return run.task.strip(shown(images, run.values), targets, logits, run.data.classes)


@torch.inference_mode()
def predictions(
    run: Run, part: Part, stop: Callable[[], bool], indices: np.ndarray | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batch by batch logits float32 on the device, (N, K) or (N, K, S, S), and targets as in `loader.Batch`.

    The images are not augmented, the weights those that are evaluated (`optim.ema`). Sets `run.image_ms` at the end.
    A batch is no larger than the parts that training takes a batch in, where it does (`data.micro_batch`, or what
    memory allowed), and one of masks no larger than a batch of training: for these memory is known to suffice.

    Raises:
        Stopped: `stop`, asked before every batch, said so.
    """
    indices = np.arange(len(part.labels)) if indices is None else indices
    module, data, laps = run.stepper.evaluated, run.final, []
    at_once = EVALUATION_BATCH if part.masks is None else data.batch_size
    most = min(EVALUATION_BATCH, at_once, run.micro.size or at_once)
    module.eval()

    def look(batch: torch.Tensor, normalized: Normalizer = run.normalized) -> tuple[torch.Tensor, ...]:
        return (module(normalized(batch)).float(),)  # the run keeps what is recorded, which must not keep the run

    for start in range(0, len(indices), most):
        if stop():
            raise Stopped
        rows = indices[start : start + most]
        batch = run.seen.batch(part, rows, data)
        with run.autocast:
            if run.device.type == "cuda" and len(rows) not in run.tried:  # it tries kernels first: that is not timed
                run.tried.add(len(rows))
                look(batch)
            began = _mark(run.device)
            (logits,) = run.looked(look, id(module), 1, batch.to(run.device, non_blocking=True))
            logits = logits.clone() if run.device.type == "cuda" else logits  # the next batch may lie there
            laps.append((began, _mark(run.device)))
        yield logits, evaluation_targets(part, rows, data.image_size, data.fit)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)  # so that it has passed every mark
    run.image_ms = sum(_ms_between(*lap) for lap in laps) / len(indices)


def _mark(device: torch.device) -> Any:
    """A moment in the work of the device, without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _ms_between(began: Any, ended: Any) -> float:
    return float(1e3 * (ended - began) if isinstance(began, float) else began.elapsed_time(ended))
