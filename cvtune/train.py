"""Training one recipe: a generator of Epoch in plain torch. Knows no Ray, no journal, no scheduler.

Everything random in an epoch follows from the recipe's seed and the run's step, so a run taken up again at an epoch
boundary goes on exactly as if it had never stopped (bit for bit on the CPU), and no generator state needs to be saved.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cvtune.augment import Pipeline
from cvtune.backward import forward_of, mixed_of, there_and_back
from cvtune.data import Dataset
from cvtune.data.loader import Loader, derived_seed, report_order, subset
from cvtune.device_loader import loader_of
from cvtune.epoch import Epoch
from cvtune.errors import CvtuneError
from cvtune.evaluation import Seen, Stopped, clean_loss, evaluate, never
from cvtune.evaluation import score_test as score_test  # as `own_loop` and `folds` have one
from cvtune.kinds import PHOTO, to_json, values_of
from cvtune.microbatch import MicroBatches
from cvtune.models import build_model
from cvtune.models.layout import arrange
from cvtune.normalize import normalizer_of
from cvtune.on_gpu import DEFAULT, OnGpu
from cvtune.optim import Stepper
from cvtune.probe_set import ProbeSet
from cvtune.recipe import MUTABLE, Recipe, Value
from cvtune.recorded import RecordedPass, Repeated
from cvtune.regularize import number, resolve
from cvtune.tasks import RULES
from cvtune.team import ALONE, Team

CLEAN_SLICE = 256  # training images on which the un-augmented loss is measured


class NotInForce(CvtuneError):
    """A value of the recipe is not what the next batch would be trained with."""


class Run:
    """What changes while one recipe trains: weights, optimizer, moving average, position.

    Args:
        recipe: what to train.
        data: the images, and the task; `data.test` is read by `score_test` alone.
        device: "cuda" or "cpu"; None: a GPU where there is one.
        workers: processes that augment beside the training process; 0: none.
        divides: whether a batch that does not fit into memory is trained in parts.
        team: the processes that train it together; this one alone by default.
        on_gpu: what a GPU does beside training, where there is one.

    Attributes:
        step: reports of this trial so far. What is random follows from it and the trial's own seed, and not from
            `epoch`: clones of one donor then part at once, and none sees an order or augmentation of its own again
            because the weights that it took over are younger.
        epoch: age of the weights. What belongs to them follows from it: rate schedule, `changes`, freezing, the end.
            It is `step` until a trial takes over the weights of another one (`load_state_dict` of the donor's state,
            then `run.step = reports of the trial itself`).
        images: training images per epoch.
        image_ms: copy to the device and forward pass, ms per image, in the last evaluation.
        probe: what was said of the probe set at the last report.
        values: what the numbers of the images mean.
        normalized: (N, H, W, C) on the host -> float32 (N, C, H, W) on the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        device: str | None = None,
        workers: int = 0,
        divides: bool = True,
        team: Team = ALONE,
        on_gpu: OnGpu = DEFAULT,
    ) -> None:
        self.recipe, self.data, self.task, self.team = recipe, data, RULES[data.task], team
        self.device = torch.device(device or team.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        is_gpu = self.device.type == "cuda"
        half = torch.bfloat16 if is_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.autocast = torch.autocast(self.device.type, dtype=half, enabled=is_gpu)
        self.scaler = torch.amp.GradScaler() if is_gpu and half == torch.float16 else None
        self.used = subset(data.train.labels, recipe.data.train_fraction, recipe.seed)
        self.clean = np.sort(np.random.default_rng(0).permutation(len(data.train.labels))[:CLEAN_SLICE])
        self.loader = loader_of(recipe, data, self.device, on_gpu) or Loader(data.train, workers, is_gpu)
        if is_gpu:
            # The shape of a batch hardly changes; beside others, what is tried out would be timed with their work.
            torch.backends.cudnn.benchmark = not on_gpu.shared
            torch.cuda.reset_peak_memory_stats(self.device)  # a warm process has trained other trials
        seed_everything(recipe.seed, 0)
        self.final = recipe.data.model_copy(update={"image_size": recipe.image_sizes[-1]})  # how images are scored
        shape = (len(data.classes), recipe.largest.image_size, data.task, data.kind.channels)
        self.model = build_model(resolve(recipe), *shape)
        self.layout = arrange(self.model.module.to(self.device), self.device)
        self.images = min(recipe.data.report_images or len(self.used), len(self.used))
        batches = max(1, -(-self.images // recipe.data.batch_size))
        graphs = is_gpu and self.scaler is None and team.size == 1 and on_gpu.graphs(recipe)
        self.recorded, self.looked = RecordedPass(self.model.module, graphs), Repeated(graphs)
        self.stepper = Stepper(self.model, resolve(recipe), max(1, -(-batches // recipe.optim.accumulate)))
        self.counts = None  # of the classes in the training images; to count pixels takes a while
        if recipe.loss.class_weight:
            self.counts = self.task.count(data.train, self.used, len(data.classes)).to(self.device)
        self.step, self.epoch, self.image_ms = 0, 0, 0.0
        self.micro = MicroBatches(recipe.data.micro_batch, divides)
        self.probe = ProbeSet(len(data.val.labels), data.val.masks is not None)
        self.tried: set[int] = set()  # batch sizes that the GPU knows kernels for
        self.values = values_of(data.kind, data.stats, recipe.data.window_low, recipe.data.window_high)
        self.seen = Seen(self.device)
        self.normalized = normalizer_of(data, recipe, self.device, self.layout)
        self.apply(resolve(recipe))

    def close(self) -> None:
        """End what works beside the run; it trains no more."""
        self.loader.close()

    def apply(self, now: Recipe) -> None:
        """Set every value that may change in mid-training, over whatever was set or restored before.

        `now` is resolved: the values of the present epoch.
        """
        self.model.set_noise(now.regularize)
        self.stepper.apply(now)
        self.pipeline = Pipeline(now.augment, now.data.image_size, now.data.fit, self.values)
        self.loss_of, self.label_smoothing = (
            self.task.build_loss(now, self.counts),
            number(now.regularize.label_smoothing),
        )
        self.forward = forward_of(self.model.module, self.loss_of, self.autocast)

    def setting(self) -> Hashable:
        """What `forward` depends on beside tensors."""
        frozen = tuple(p.requires_grad for p in self.model.module.parameters())
        return *self.model.in_force(), self.label_smoothing, self.pipeline.image_size, frozen

    def in_force(self) -> Iterator[tuple[str, Value]]:
        """Dotted name and value of all that may change in mid-training, read back from what trains.

        Some come once per place; one that has no place here (momentum in Adagrad, noise in user code) does not come.
        Nothing waits for the device.
        """
        yield from self.stepper.in_force()
        yield from self.model.in_force()
        yield "regularize.label_smoothing", self.label_smoothing
        yield "data.image_size", self.pipeline.image_size
        for leaf in (name.removeprefix("augment.") for name in MUTABLE if name.startswith("augment.")):
            yield f"augment.{leaf}", getattr(self.pipeline.augment, leaf)

    def check_in_force(self, now: Recipe) -> None:
        """Compare what trains with the resolved recipe `now`.

        A restored state brings the values of its own recipe along, which is another one after an exploit: without
        this, training could go on with those while every report names the new ones.

        Raises:
            NotInForce: they differ.
        """
        wanted = now.flat()
        for name, value in self.in_force():
            if not _same(value, wanted[name]):
                raise NotInForce(
                    f"{name} = {value} is in force at step {self.step}, but the recipe says {wanted[name]}: a restored "
                    "state or user code has put it back. Run.apply must set it before the epoch begins."
                )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a fresh Run of the same recipe and data needs to go on from here.

        And, of images that are no photos, what is needed to prepare new ones as they were.

        A Run whose recipe differs in values that may change in mid-training can go on from it too.
        """
        return {
            "step": self.step,
            "epoch": self.epoch,
            "model": self.model.module.state_dict(),
            "stepper": self.stepper.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "micro_batch": self.micro.size,  # what fits was found once
            "probe": self.probe.last,
            **({} if self.data.kind == PHOTO else {"pixels": to_json(self.data.kind, self.data.stats)}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.epoch = state["step"], state["epoch"]
        self.micro.size = state.get("micro_batch", self.micro.size)  # earlier versions did not save it
        self.probe.last = state.get("probe")  # nor this
        self.model.module.load_state_dict(state["model"])
        self.stepper.load_state_dict(state["stepper"])
        if self.scaler and state["scaler"]:  # a GPU that needs no scaler may have saved it
            self.scaler.load_state_dict(state["scaler"])


@dataclass(frozen=True)
class Pass:
    """What one pass over the training images came to."""

    loss: float
    accuracy: float
    grad_norm: float
    lr: float
    images: int
    waited: float  # seconds for batches


def train(run: Run, stop: Callable[[], bool] = never) -> Iterator[Epoch]:
    """Train `run` from where it stands to `recipe.max_epochs`, yielding one Epoch after each pass.

    The run may be saved whenever an Epoch was yielded. `stop` is asked before every batch, those of the evaluation
    included; when it says so the generator ends without a report of the epoch that it broke off.

    Raises:
        NotInForce: see `Run.check_in_force`.
    """
    while run.epoch < run.recipe.max_epochs:
        started = time.perf_counter()
        now = begin_pass(run)
        try:
            start = None if run.epoch else clean_loss(run, stop)
            began = time.perf_counter()  # that look was no training
            run.team.order("pass")
            done = one_pass(run, now, seed_pass(run), stop)
            trained = time.perf_counter() - began
            scores = evaluate(run, stop)
        except Stopped:
            return
        run.step, run.epoch = run.step + 1, run.epoch + 1
        yield Epoch(
            step=run.step,
            epoch=run.epoch,
            train_loss=done.loss,
            train_accuracy=done.accuracy,
            **scores,
            start_loss=start,
            lr=done.lr,
            weight_decay=run.stepper.weight_decay,
            dropout=float(dict(run.in_force()).get("regularize.dropout") or 0.0),
            augment_strength=run.pipeline.augment.strength,
            grad_norm=done.grad_norm,
            zero_weights=run.stepper.zero_share().item(),
            weight_norm=run.stepper.weight_norm().item(),
            seconds=time.perf_counter() - started,
            images_per_second=done.images / trained,
            data_wait=done.waited / trained,
            peak_memory=peak_memory(run.device),
            parameters=sum(p.numel() for p in run.model.module.parameters()),
            image_ms=run.image_ms,
            micro_batch=min(run.micro.size or now.data.batch_size, now.data.batch_size),
        )


def begin_pass(run: Run) -> Recipe:
    """Set what the present epoch trains with; returns it, resolved.

    Raises:
        NotInForce: see `Run.check_in_force`.
    """
    now = resolve(run.recipe.at(run.epoch))
    run.apply(now)
    run.model.freeze_backbone(run.epoch < now.model.freeze_epochs)
    run.check_in_force(now)
    return now


def seed_pass(run: Run) -> int:
    """Seed every generator for the present pass; returns the seed of augmentation and mixing, the same in a team."""
    seed = seed_everything(run.recipe.seed, run.step)
    if run.team.rank:
        torch.manual_seed(derived_seed(seed, run.team.rank))  # else every process would drop the same features
    return seed


def one_pass(run: Run, now: Recipe, seed: int, stop: Callable[[], bool]) -> Pass:
    """One pass over the training images, or `data.report_images` of them, with the values that are in force.

    Nothing waits for the device before the pass is over.

    Args:
        run: `run.apply(now)` was called.
        now: resolved.
        seed: of augmentation and mixing.
        stop: asked before every batch.

    Raises:
        Stopped: `stop` said so.
    """
    device, labels_of, pipeline = run.device, run.data.train.labels, run.pipeline
    order = report_order(labels_of[run.used], run.recipe.seed, run.step, now.data.oversample, run.images)
    generator = torch.Generator().manual_seed(seed)
    loss_sum, norm_sum = (torch.zeros((), device=device) for _ in range(2))
    hits, told = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    images, rates, waited = 0, [], run.loader.waited
    team, setting = run.team, run.setting()
    batches = run.loader.batches(run.used[order], now.data.batch_size, pipeline, seed, team.rows)

    run.model.module.train()
    for count, batch in enumerate(batches, 1):
        if team.agreed(stop()):
            raise Stopped
        size = len(batch.targets) if team.size == 1 else min(now.data.batch_size, len(order) - images)
        mixed = mixed_of(run, batch, size, generator)

        left = (len(order) - images) // now.data.batch_size
        loss, logits = there_and_back(run, now, mixed, size, setting, left)
        images += size
        if count % now.optim.accumulate == 0 or images >= len(order) - 1:  # a last single image makes no batch
            team.add_gradients(run.model.module)
            norm_sum += run.stepper.step(run.scaler)
            rates.append(run.stepper.lr)
        loss_sum += loss * size
        right, of = run.task.hits(logits, mixed.y_a)
        hits, told = (hits + right, told + of) if team.counts(size) else (hits, told)
    team.add(loss_sum, hits, told)
    team.average_buffers(run.model.module, *({run.stepper.evaluated} - {run.model.module}))
    return Pass(
        loss=loss_sum.item() / images,
        accuracy=hits.item() / max(1.0, told.item()),
        grad_norm=norm_sum.item() / len(rates),
        lr=float(np.mean(rates)),
        images=images,
        waited=run.loader.waited - waited,
    )


def seed_everything(seed: int, step: int) -> int:
    """Seed every global generator for one epoch; returns the seed that augmentation and mixing use."""
    derived = derived_seed(seed, step)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)
    return derived


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: of the GPU since the run began, else of the whole process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _same(value: Value, wanted: Value) -> bool:
    if isinstance(value, float) and isinstance(wanted, float):
        return math.isclose(value, wanted, rel_tol=1e-9)  # what a branch tells was multiplied and divided
    return value == wanted
