"""Training one recipe: a generator of Epoch in plain torch. Knows no Ray, no journal, no scheduler.

Everything random in an epoch follows from the recipe's seed and the number of the epoch, so a run taken up again at
an epoch boundary goes on exactly as if it had never stopped (bit for bit on the CPU), and no generator state needs
to be saved.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cvtune.augment import Pipeline, mix_batch
from cvtune.data import Dataset, Part
from cvtune.data.loader import Loader, epoch_order, evaluation_batch, subset
from cvtune.epoch import Epoch
from cvtune.loss import build_loss
from cvtune.metrics import classification
from cvtune.models import build_model
from cvtune.optim import Stepper
from cvtune.recipe import Recipe
from cvtune.regularize import resolve

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLEAN_SLICE = 256  # training images on which the un-augmented loss is measured
EVALUATION_BATCH = 256


class Run:
    """What changes while one recipe trains: weights, optimizer, moving average, position.

    Args:
        recipe: what to train.
        data: the images; `data.test` is never read.
        device: "cuda" or "cpu"; None: a GPU where there is one.
        workers: processes that augment beside the training process; 0: none.
    """

    def __init__(self, recipe: Recipe, data: Dataset, device: str | None = None, workers: int = 0) -> None:
        self.recipe, self.data = recipe, data
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_gpu = self.device.type == "cuda"
        half = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.autocast = torch.autocast(self.device.type, dtype=half, enabled=on_gpu)
        self.scaler = torch.amp.GradScaler() if on_gpu and half == torch.float16 else None
        self.used = subset(data.train.labels, recipe.data.train_fraction, recipe.seed)
        self.clean = np.sort(np.random.default_rng(0).permutation(len(data.train.labels))[:CLEAN_SLICE])
        self.loader = Loader(data.train, workers=workers, pin=on_gpu)
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # the shape of a batch hardly changes
            torch.cuda.reset_peak_memory_stats(self.device)  # a warm process has trained other trials
        seed_everything(recipe.seed, 0)
        self.model = build_model(resolve(recipe), len(data.classes), recipe.data.image_size)
        # Measured with torch 2.15 (oneDNN 3.13): with several CPU threads, convolutions on channels-last tensors crash
        # the process once the batch size changes, as it does with the last batch of an epoch.
        fast = on_gpu or torch.get_num_threads() == 1
        self.layout = torch.channels_last if fast else torch.contiguous_format
        self.model.module.to(self.device).to(memory_format=self.layout)
        batches = max(1, -(-len(self.used) // recipe.data.batch_size))
        self.stepper = Stepper(self.model, resolve(recipe), max(1, -(-batches // recipe.optim.accumulate)))
        self.epoch = 0
        self.mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1) * 255

    def state_dict(self) -> dict[str, Any]:
        """Everything that a fresh Run of the same recipe and data needs to go on from here."""
        return {
            "epoch": self.epoch,
            "model": self.model.module.state_dict(),
            "stepper": self.stepper.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.model.module.load_state_dict(state["model"])
        self.stepper.load_state_dict(state["stepper"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, 3) on the host -> float32 (N, 3, H, W) on the device."""
        x = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        return x.sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)


@dataclass(frozen=True)
class Pass:
    """What one pass over the training images came to."""

    loss: float
    accuracy: float
    grad_norm: float
    lr: float
    images: int
    waited: float  # seconds for batches


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> Iterator[Epoch]:
    """Train `run` from where it stands to `recipe.max_epochs`, yielding one Epoch after each pass.

    The run may be saved whenever an Epoch was yielded. `stop` is asked before every batch; when it says so the
    generator ends without a report of the epoch that it broke off.
    """
    while run.epoch < run.recipe.max_epochs:
        started = time.perf_counter()
        now = resolve(run.recipe.at(run.epoch))
        run.model.set_noise(now.regularize)
        run.model.freeze_backbone(run.epoch < now.model.freeze_epochs)
        run.stepper.apply(now)
        done = one_pass(run, now, seed_everything(run.recipe.seed, run.epoch), stop)
        if done is None:
            return
        run.epoch += 1
        trained = time.perf_counter() - started
        clean = evaluate(run, run.data.train, run.clean)
        val = evaluate(run, run.data.val, np.arange(len(run.data.val.labels)))
        yield Epoch(
            step=run.epoch,
            epoch=run.epoch,
            train_loss=done.loss,
            train_accuracy=done.accuracy,
            clean_loss=clean["loss"],
            clean_accuracy=clean["accuracy"],
            **{f"val_{name}": value for name, value in val.items()},
            lr=done.lr,
            weight_decay=float(now.regularize.weight_decay or 0.0),
            grad_norm=done.grad_norm,
            zero_weights=run.stepper.zero_share().item(),
            seconds=time.perf_counter() - started,
            images_per_second=done.images / trained,
            data_wait=done.waited / trained,
            peak_memory=peak_memory(run.device),
        )


def one_pass(run: Run, now: Recipe, seed: int, stop: Callable[[], bool]) -> Pass | None:
    """One pass over the training images with the values in force `now`; None if it was broken off.

    Nothing waits for the device before the pass is over.
    """
    device, labels_of = run.device, run.data.train.labels
    counts = torch.bincount(torch.from_numpy(labels_of[run.used]), minlength=len(run.data.classes)).to(device)
    loss_of = build_loss(now, counts)
    order = run.used[epoch_order(labels_of[run.used], seed, now.data.oversample)]
    pipeline = Pipeline(now.augment, now.data.image_size, now.data.fit)
    generator = torch.Generator().manual_seed(seed)
    loss_sum, hits, norm_sum = (torch.zeros((), device=device) for _ in range(3))
    images, rates, waited = 0, [], run.loader.waited
    run.model.module.train()
    for number, (batch, labels) in enumerate(run.loader.batches(order, now.data.batch_size, pipeline, seed), 1):
        if stop():
            return None
        labels = labels.to(device, non_blocking=True)
        x, y_a, y_b, share = mix_batch(run.normalized(batch), labels, now.augment.mixup, now.augment.cutmix, generator)
        with run.autocast:
            logits = run.model.module(x)
            loss = loss_of(logits, y_a, y_b, share)
        scaled = loss / now.optim.accumulate
        torch.autograd.backward(run.scaler.scale(scaled) if run.scaler else scaled)
        images += len(labels)
        if number % now.optim.accumulate == 0 or images >= len(order) - 1:  # a last single image makes no batch
            norm_sum += run.stepper.step(run.scaler)
            rates.append(run.stepper.lr)
        loss_sum += loss.detach() * len(labels)
        hits += (logits.detach().argmax(1) == y_a).sum()
    return Pass(
        loss=loss_sum.item() / images,
        accuracy=hits.item() / images,
        grad_norm=norm_sum.item() / len(rates),
        lr=float(np.mean(rates)),
        images=images,
        waited=run.loader.waited - waited,
    )


@torch.inference_mode()
def evaluate(run: Run, part: Part, indices: np.ndarray) -> dict[str, float]:
    """loss, accuracy, balanced_accuracy, macro_f1 and ece of the current weights on some images, not augmented."""
    module, data = run.stepper.evaluated, run.recipe.data
    module.eval()
    logits = []
    for start in range(0, len(indices), EVALUATION_BATCH):
        batch = evaluation_batch(part.images, indices[start : start + EVALUATION_BATCH], data.image_size, data.fit)
        with run.autocast:
            logits.append(module(run.normalized(torch.from_numpy(batch))).float())
    return classification(torch.cat(logits), torch.from_numpy(part.labels[indices]).to(run.device))


def seed_everything(seed: int, epoch: int) -> int:
    """Seed every global generator for one epoch; returns the seed that data order and augmentation use."""
    derived = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
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
