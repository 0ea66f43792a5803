"""Steps that are recorded: when, and that training is the same. A stand-in replays; `test_on_gpu.py` asks a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvtune import recorded
from cvtune.data import Dataset, open_dataset
from cvtune.on_gpu import OnGpu
from cvtune.recipe import Recipe
from cvtune.recorded import WARM, WORTH, Habit, Repeated
from cvtune.sections import Source
from cvtune.train import Run, train

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 32
FAST = {
    "data.image_size": 16,
    "data.batch_size": BATCH,
    "data.train_fraction": 0.4,
    "model.width": 4,
    "max_epochs": 2,
    "augment.flip": "none",
    "regularize.strength": 0.5,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(Source(source="digits"), Recipe().replace(FAST).data, tmp_path_factory.mktemp("cache"), None, 1)


class Replayed:
    """A `Recording` on the CPU: what is made lies where it lay before, as that of a graph does."""

    made_of: list[nn.Module] = []
    calls = 0

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], like: Sequence[Tensor]) -> None:
        (module,) = self.made_of
        before = [buffer.clone() for buffer in module.buffers()]
        random = torch.get_rng_state()
        self.function, self.given = function, tuple(tensor.clone() for tensor in like)
        self.made = function(*self.given)
        self.gradients = [parameter.grad for parameter in module.parameters()]
        torch.set_rng_state(random)
        for buffer, was in zip(module.buffers(), before, strict=True):
            buffer.copy_(was)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (module,) = self.made_of
        type(self).calls += 1
        for place, tensor in zip(self.given, tensors, strict=True):
            place.copy_(tensor)
        held = [parameter.grad for parameter in module.parameters()]
        module.zero_grad()
        for place, tensor in zip(self.made, self.function(*self.given), strict=True):
            place.copy_(tensor)
        for parameter, place, was in zip(module.parameters(), self.gradients, held, strict=True):
            if place is not None:
                assert parameter.grad is not None
                place.copy_(parameter.grad)
            parameter.grad = was
        return self.made


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Replayed]]:
    monkeypatch.setattr(recorded, "Recording", Replayed)
    monkeypatch.setattr(Habit.__init__, "__defaults__", (WARM, 4))
    monkeypatch.setattr(Replayed, "calls", 0)
    yield Replayed


def trained(recipe: Recipe, data: Dataset, stand_in: type[Replayed] | None) -> tuple[list[Any], dict[str, Tensor]]:
    run = Run(recipe, data, "cpu")
    if stand_in is not None:
        stand_in.made_of = [run.model.module]
        run.recorded.allowed = True
    epochs = [epoch.numbers() for epoch in train(run)]
    told = [{k: v for k, v in numbers.items() if "second" not in k and k not in TIMES} for numbers in epochs]
    return told, run.model.module.state_dict()


TIMES = ("images_per_second", "data_wait", "peak_memory", "image_ms")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"augment.mixup": 0.4},
        {"augment.cutmix": 1.0, "loss.class_weight": 1.0},
        {"optim.accumulate": 3, "optim.clip_norm": 0.5},
        {"optim.ema": 0.9, "optim.name": "sgd", "optim.lr": 0.05, "regularize.l1": 1e-4},
        {"model.freeze_epochs": 1, "model.norm": "group"},
        {"changes": ((1, {"regularize.strength": 0.8}),)},
        {"data.micro_batch": 16},
    ],
    ids=lambda values: ",".join(values) or "plain",
)
def test_training_is_the_same(values: dict[str, Any], dataset: Dataset, stand_in: type[Replayed]) -> None:
    recipe = Recipe().replace(FAST | values)
    plain, weights = trained(recipe, dataset, None)
    told, same = trained(recipe, dataset, stand_in)
    assert (stand_in.calls > 0) == ("data.micro_batch" not in values)
    mixes = any(name in values for name in ("augment.mixup", "augment.cutmix"))
    for one, other in zip(plain, told, strict=True):
        for name, value in one.items():
            wanted = pytest.approx(value, rel=1e-4, abs=1e-5) if mixes and isinstance(value, float) else value
            assert other[name] == wanted, name
    if not mixes:  # there the share is a number in one and a tensor in the other, which rounds in another place
        assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_what_is_recorded_does_not_keep_its_run(dataset: Dataset, stand_in: type[Replayed]) -> None:
    """A run in a cycle of references holds a GPU's memory, and its loader's workers, until garbage is collected."""
    run = Run(Recipe().replace(FAST), dataset, "cpu")
    stand_in.made_of = [run.model.module]
    run.recorded.allowed, run.looked = True, Repeated(allowed=True, warm=0, worth=1)
    epochs = list(train(run))
    assert len(epochs) == 2 and run.recorded._recording is not None and run.looked._recording is not None
    kept = weakref.ref(run)
    gc.disable()
    try:
        del run
        assert kept() is None
    finally:
        gc.enable()


def test_a_step_is_recorded_once_it_pays() -> None:
    habit = Habit()
    assert [habit.pays("shape", "setting", 100) for _ in range(WARM + 1)] == [False] * WARM + [True]
    assert habit.pays("shape", "another setting", WORTH)  # the device has its kernels
    short = Habit()
    told = [short.pays("shape", "setting", 3) for _ in range(WORTH + 1)]
    assert told == [False] * WORTH + [True]  # short passes, but many


def test_a_smaller_last_batch_goes_the_ordinary_way(dataset: Dataset, stand_in: type[Replayed]) -> None:
    recipe = Recipe().replace(FAST)
    images = len(Run(recipe, dataset, "cpu").used)
    assert images % BATCH > 1
    trained(recipe, dataset, stand_in)
    whole = images // BATCH
    assert stand_in.calls == 2 * whole - WARM


def test_what_cannot_be_recorded_trains_all_the_same(
    dataset: Dataset, stand_in: type[Replayed], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded, "Recording", refused)
    recipe = Recipe().replace(FAST)
    assert trained(recipe, dataset, stand_in)[0] == trained(recipe, dataset, None)[0]
    assert capsys.readouterr().out.count("cannot be recorded") == 1


@pytest.mark.parametrize(
    ("values", "when", "graphs"),
    [
        ({}, "auto", True),
        ({}, "off", False),
        ({"model.name": "python:a:b"}, "auto", False),
        ({"model.name": "python:a:b"}, "on", True),
        ({"loss.name": "python:a:b"}, "auto", False),
    ],
)
def test_user_code_is_recorded_only_where_it_is_asked_for(values: dict[str, Any], when: Any, graphs: bool) -> None:
    assert OnGpu(graph=when).graphs(Recipe().replace(values)) is graphs
