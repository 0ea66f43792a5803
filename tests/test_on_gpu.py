"""What only a GPU can show of recorded steps and of augmentation there. Skipped where there is none."""

from __future__ import annotations

import gc
import multiprocessing
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from cvtune.augment import Pipeline
from cvtune.data import Dataset, Part
from cvtune.device_augment import DevicePipeline
from cvtune.device_loader import DeviceLoader, flatten
from cvtune.epoch import Epoch
from cvtune.on_gpu import OnGpu
from cvtune.recipe import Augment, Recipe
from cvtune.train import Run, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CLASSES = 4
SMALL = Recipe().replace(
    {
        "data.image_size": 32,
        "data.batch_size": 32,
        "max_epochs": 3,
        "optim.lr": 2e-3,
        "model.width": 8,
        "regularize.strength": 0.0,
        "augment.strength": 0.3,
    }
)


def part(images: int, seed: int) -> Part:
    """Patterns of four kinds, of several sizes, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images)
    made = []
    for label in labels:
        height, width = rng.integers(32, 64, 2)
        y, x = np.mgrid[:height, :width]
        wave = np.sin((0.3 + 0.3 * label) * (x if label % 2 else y))
        pixels = 127 + 60 * wave[..., None] * [1, 0.5, -1] + rng.normal(0, 20, (height, width, 3))
        made.append(pixels.clip(0, 255).astype(np.uint8))
    return Part(made, labels.astype(np.int64))


@pytest.fixture(scope="module")
def data() -> Dataset:
    names = tuple(map(str, range(CLASSES)))
    return Dataset(names, part(1605, 0), part(400, 1), part(0, 2), "made up", (), (), None)


def trained(recipe: Recipe, data: Dataset, on_gpu: OnGpu, workers: int = 0) -> tuple[Run, list[Epoch]]:
    run = Run(recipe, data, workers=workers, on_gpu=on_gpu)
    return run, list(train(run))


def is_recorded(run: Run) -> bool:
    return run.recorded._recording is not None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"augment.mixup": 0.4},
        {"augment.cutmix": 1.0, "loss.class_weight": 1.0},
        {"optim.accumulate": 3, "optim.clip_norm": 0.5},
        {"optim.ema": 0.9, "optim.name": "sgd", "optim.lr": 0.02, "regularize.l1": 1e-4},
        {"model.freeze_epochs": 1, "model.norm": "group"},
        {"model.name": "torchvision:mobilenet_v3_small", "optim.name": "rmsprop", "optim.lr": 1e-4},
        {"data.report_images": 400, "optim.name": "adagrad"},
    ],
    ids=lambda values: ",".join(values) or "plain",
)
def test_a_recorded_step_trains_as_the_ordinary_one(values: dict[str, Any], data: Dataset) -> None:
    recipe = SMALL.replace(values)
    by_kernel, plain = trained(recipe, data, OnGpu(graph="off"))
    run, told = trained(recipe, data, OnGpu(graph="auto"))
    assert is_recorded(run) and not is_recorded(by_kernel)
    for one, other in zip(plain, told, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=0.05, abs=0.02)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.3)
        assert other.val_loss == pytest.approx(one.val_loss, rel=0.25, abs=0.1)
    assert told[-1].train_loss < told[0].train_loss


def test_what_is_dropped_is_drawn_anew_at_each_step_and_follows_from_the_seed(data: Dataset) -> None:
    noisy = {"regularize.dropout": 0.5, "regularize.spatial_dropout": 0.3, "regularize.drop_path": 0.3}
    recipe = SMALL.replace({**noisy, "augment.strength": 0.0})
    run, told = trained(recipe, data, OnGpu())
    assert is_recorded(run) and told[-1].train_loss > told[-1].clean_loss
    recording = run.recorded._recording
    assert recording is not None
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append([recording(*recording.given)[1].clone() for _ in range(2)])
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-2)  # averages of batch norm do not matter in training
    assert not torch.allclose(outputs[0][0], outputs[0][1], atol=0.1)
    assert not torch.allclose(outputs[0][0], outputs[2][0], atol=0.1)


def test_a_step_is_recorded_anew_when_what_is_dropped_changes(data: Dataset) -> None:
    recipe = SMALL.replace({"regularize.dropout": 0.0, "changes": ((1, {"regularize.dropout": 0.5}),)})
    run = Run(recipe, data)
    recordings = []
    for _ in train(run):
        recordings.append(run.recorded._recording)
    assert recordings[0] is not recordings[1] and recordings[1] is recordings[2] is not None


def test_a_run_that_is_taken_up_goes_on_as_it_would_have(data: Dataset) -> None:
    whole = trained(SMALL, data, OnGpu())[1]
    run = Run(SMALL, data)
    epochs = train(run)
    next(epochs)
    state = run.state_dict()
    again = Run(SMALL, data)
    again.load_state_dict(state)
    later = list(train(again))
    assert [e.step for e in later] == [2, 3]
    assert later[-1].train_loss == pytest.approx(whole[-1].train_loss, rel=0.05, abs=0.02)


def waits(num_classes: int, recipe: Recipe) -> torch.nn.Module:
    class Waits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Linear(8, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x).relu()
            if x.mean().item() > 1e6:
                return self.last(x.amax((2, 3)))
            return self.last(x.mean((2, 3)))

    return Waits()


def test_code_that_waits_for_the_device_trains_all_the_same(
    data: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvtune.usercode.load_function", lambda ref, field: waits)
    recipe = SMALL.replace({"model.name": "python:a:b", "regularize.strength": None, "optim.lr": 0.02})
    run, told = trained(recipe, data, OnGpu(graph="on"))
    assert not is_recorded(run) and not run.recorded.allowed
    assert "cannot be recorded" in capsys.readouterr().out
    assert told[-1].train_loss < told[0].train_loss


def test_images_are_augmented_as_on_the_cpu(data: Dataset) -> None:
    make = Pipeline(Augment(strength=0.8, flip="both"), 32)
    photos = flatten(data.train.images[:64], lambda image: image)
    seeds = torch.arange(64) * 7919
    pipeline = DevicePipeline(make, 63)
    apart = (pipeline(photos.to(torch.device("cuda")), seeds.cuda()).cpu() - pipeline(photos, seeds)).abs()
    assert apart.mean() < 0.1 and (apart > 2).float().mean() < 1e-3  # where JPEG rounds the other way


def test_augmentation_is_recorded_and_makes_the_same(data: Dataset) -> None:
    make, order = Pipeline(Augment(strength=0.8), 32), np.arange(1605)
    device = torch.device("cuda")
    made = []
    for records in (True, False):
        loader = DeviceLoader(data.train, device, records)
        for _ in range(4):
            batches = [batch.images.clone() for batch in loader.batches(order, 32, make, 5)]
        made.append(batches)
        assert (loader._repeated._recording is not None) == records
    assert len(made[0]) == len(made[1]) == 51
    for one, other in zip(*made, strict=True):
        assert (one - other).abs().mean() < 0.01


def test_a_run_is_freed_without_the_garbage_collector(data: Dataset) -> None:
    """Which would take five seconds for each of its workers."""
    run, _ = trained(SMALL.replace({"augment.policy": "trivial"}), data, OnGpu(), workers=2)
    assert is_recorded(run) and len(multiprocessing.active_children()) == 2
    kept = weakref.ref(run)
    gc.disable()
    try:
        del run
        assert kept() is None and not multiprocessing.active_children()
    finally:
        gc.enable()


def test_a_run_leaves_no_memory_behind(data: Dataset) -> None:
    trained(SMALL, data, OnGpu())
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        trained(SMALL, data, OnGpu())
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**21
