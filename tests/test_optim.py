"""Each way to change a weight, checked on a network small enough to follow."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvtune.models import Network, build_model
from cvtune.optim import OPTIMIZERS, Stepper, rate
from cvtune.recipe import Recipe
from cvtune.regularize import resolve

PLAIN: dict[str, Any] = {
    "regularize.strength": None,
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0.0,
    "optim.lr": 0.01,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**values: object) -> Recipe:
    return resolve(Recipe().replace(PLAIN | {name.replace("__", "."): value for name, value in values.items()}))


def tiny() -> Network:
    torch.manual_seed(0)
    head = nn.Linear(6, 3)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    return Network(module, head)


def backward(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 6, 6, generator=generator)
    nn.functional.cross_entropy(module(images), torch.arange(8) % 3).backward()


def train(network: Network, stepper: Stepper, steps: int, start: int = 0) -> None:
    for seed in range(start, start + steps):
        backward(network.module, seed)
        stepper.step()


def trained(steps: int = 5, **values: object) -> tuple[Network, Stepper]:
    network, r = tiny(), recipe(**values)
    stepper = Stepper(network, r, steps_per_epoch=1)
    train(network, stepper, steps)
    return network, stepper


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# --- the rate ---------------------------------------------------------------------------------------------------


def curve(**values: object) -> list[float]:
    r = recipe(max_epochs=10, optim__lr=1.0, **values)
    return [rate(r, step, 10) for step in range(100)]


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    rates = curve(optim__warmup_epochs=2.0, optim__schedule="constant")
    rises = [b - a for a, b in itertools.pairwise(rates[:21])]
    assert rates[0] == pytest.approx(rises[0]) == pytest.approx(rises[-1])
    assert set(rates[20:]) == {1.0}


def test_warm_up_takes_at_most_half_of_the_run() -> None:
    assert curve(optim__warmup_epochs=1000.0).index(1.0) == 50


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_schedules(schedule: str, middle: float) -> None:
    rates = curve(optim__schedule=schedule)
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(middle)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] <= 1
    end = recipe(max_epochs=10, optim__schedule=schedule)
    assert rate(end, 500, 10) == (0.01 if schedule == "constant" else 0.0)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 8.0), ("sqrt", 8**0.5)])
def test_the_rate_follows_the_images_per_step_by_the_rule_that_is_stated(scaling: str, factor: float) -> None:
    large = {"optim__lr_scaling": scaling, "data__batch_size": 128, "optim__accumulate": 4}
    for value, plain in zip(curve(**large), curve(), strict=True):
        assert value == pytest.approx(factor * plain)
    assert curve(optim__lr_scaling=scaling, data__batch_size=64) == curve()  # the batch that lr is meant for


def test_the_stepper_reports_the_rate_and_decay_it_used() -> None:
    r = recipe(max_epochs=10, optim__schedule="linear", optim__backbone_lr_scale=0.1, regularize__weight_decay=0.2)
    network = tiny()
    stepper = Stepper(network, r, 2)
    train(network, stepper, 7)
    assert stepper.lr == rate(r, 6, 2)
    assert stepper.weight_decay == 0.2
    assert {g["head"]: g["lr"] / stepper.lr for g in stepper.optimizer.param_groups} == pytest.approx(
        {False: 0.1, True: 1}
    )


# --- optimizers and decay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_learns_and_takes_every_knob(name: str) -> None:
    network, stepper = trained(
        1,
        optim__name=name,
        optim__clip_norm=1.0,
        regularize__weight_decay=0.1,
        regularize__l2=1e-4,
        regularize__l1=1e-4,
    )
    before = weights(network.module)
    stepper.apply(recipe(optim__name=name, optim__momentum=0.5, optim__lr=0.02))
    train(network, stepper, 3)
    assert all(not torch.equal(p, before[name]) for name, p in network.module.named_parameters())
    assert all(p.isfinite().all() for p in network.module.parameters())


def reference(optimizer: type[torch.optim.Optimizer], steps: int = 5, **options: Any) -> dict[str, Tensor]:
    """What torch's own optimizer makes of the tiny network when decay is kept from vectors."""
    module = tiny().module
    options, decay = {k: v for k, v in options.items() if k != "weight_decay"}, options["weight_decay"]
    matrices, vectors = ([p for p in module.parameters() if (p.ndim >= 2) == m] for m in (True, False))
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    torchs = optimizer(groups, **options)
    for seed in range(steps):
        torchs.zero_grad()
        backward(module, seed)
        torchs.step()
    return weights(module)


def test_adamw_is_torchs_adamw() -> None:
    network, _ = trained(optim__name="adamw", optim__momentum=0.8, regularize__weight_decay=2.0)
    expected = reference(torch.optim.AdamW, lr=0.01, betas=(0.8, 0.999), weight_decay=2.0)
    torch.testing.assert_close(weights(network.module), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_l2_is_torchs_nesterov_sgd_with_weight_decay(momentum: float) -> None:
    network, _ = trained(optim__name="sgd", optim__momentum=momentum, regularize__l2=0.3)
    expected = reference(torch.optim.SGD, lr=0.01, momentum=momentum, nesterov=momentum > 0, weight_decay=0.3)
    torch.testing.assert_close(weights(network.module), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_decay_multiplies_matrices_and_spares_norms_and_biases(name: str) -> None:
    network = tiny()
    before = weights(network.module)
    tiny_rate = recipe(optim__name=name, optim__lr=1e-6, optim__momentum=0.0, regularize__weight_decay=1e4)
    train(network, Stepper(network, tiny_rate, 1), 10)
    for key, p in network.module.named_parameters():
        torch.testing.assert_close(p, before[key] * (0.99**10 if p.ndim >= 2 else 1.0), atol=1e-4, rtol=0)


def test_a_decay_above_one_over_rate_goes_to_zero_not_beyond() -> None:
    network, _ = trained(1, optim__name="sgd", optim__momentum=0.0, optim__lr=0.001, regularize__weight_decay=1e4)
    assert network.module.get_parameter("5.weight").abs().max() < 0.01


def test_strength_decays_alike_at_every_rate() -> None:
    factors = []
    for lr in (1e-7, 1e-6):
        network = tiny()
        before = weights(network.module)["5.weight"]
        r = recipe(optim__name="sgd", optim__lr=lr, regularize__strength=1.0)
        train(network, Stepper(network, resolve(r), 1), 20)
        factors.append((network.module.get_parameter("5.weight") / before).mean().item())
    assert factors == pytest.approx([0.999**20] * 2, abs=2e-4)


def test_momentum_sees_l2_but_not_weight_decay() -> None:
    def buffer(**values: object) -> Tensor:
        network, stepper = trained(1, optim__name="sgd", **values)
        state: Tensor = stepper.optimizer.state[network.module.get_parameter("5.weight")]["momentum_buffer"]
        return state

    start = weights(tiny().module)["5.weight"]
    torch.testing.assert_close(buffer(regularize__l2=0.5) - buffer(), 0.5 * start)
    torch.testing.assert_close(buffer(regularize__weight_decay=0.5), buffer())


def test_l1_makes_exact_zeros_in_matrices_only_and_reports_their_share() -> None:
    network, stepper = trained(20, optim__name="sgd", regularize__l1=0.5)
    values = weights(network.module)
    zeros = sum(int((p == 0).sum()) for p in values.values() if p.ndim >= 2)
    assert zeros > 20
    assert stepper.zero_share().item() == pytest.approx(zeros / sum(p.numel() for p in values.values() if p.ndim >= 2))
    assert all((p != 0).all() for p in values.values() if p.ndim < 2)
    assert trained(20, optim__name="sgd")[1].zero_share().item() == 0.0


def test_l1_moves_a_weight_by_rate_times_l1() -> None:
    plain, pulled = trained(1, optim__name="sgd"), trained(1, optim__name="sgd", regularize__l1=0.1)
    a, b = weights(plain[0].module)["5.weight"], weights(pulled[0].module)["5.weight"]
    torch.testing.assert_close(b, a.sign() * (a.abs() - 0.001).clamp(min=0))


# --- gradients --------------------------------------------------------------------------------------------------


def test_clipping_limits_the_gradient_and_reports_the_norm_before() -> None:
    network = tiny()
    stepper = Stepper(network, recipe(optim__name="sgd", optim__momentum=0.0, optim__clip_norm=0.05), 1)
    before = weights(network.module)
    backward(network.module, 0)
    expected = torch.cat([p.grad.flatten() for p in network.module.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(stepper.step(), expected)
    moved = torch.cat([(p - before[name]).flatten() for name, p in network.module.named_parameters()]).norm()
    assert moved.item() == pytest.approx(0.01 * 0.05, rel=1e-3)


def test_step_uses_up_the_gradients() -> None:
    network, _ = trained(1)
    assert all(p.grad is None for p in network.module.parameters())


def test_a_grad_scaler_changes_nothing_but_skips_overflow() -> None:
    network, plain = tiny(), trained(3, optim__clip_norm=0.1)[0]
    stepper = Stepper(network, recipe(optim__clip_norm=0.1), 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(3):
        network.module.zero_grad()
        backward(network.module, seed)
        for p in network.module.parameters():
            p.grad = None if p.grad is None else p.grad * scaler.scale(torch.ones(()))
        stepper.step(scaler)
    torch.testing.assert_close(weights(network.module), weights(plain.module))
    backward(network.module, 3)
    network.module.get_parameter("5.bias").grad = torch.full((3,), torch.inf)
    before = weights(network.module)
    assert not stepper.step(scaler).isfinite()
    torch.testing.assert_close(weights(network.module), before)


def test_a_frozen_backbone_stands_still_under_every_penalty() -> None:
    network = tiny()
    r = recipe(regularize__weight_decay=1.0, regularize__l1=0.1, regularize__l2=0.1, optim__ema=0.5)
    stepper = Stepper(network, r, 1)
    network.freeze_backbone(True)
    network.module.train()
    before = {k: v.clone() for k, v in network.module.state_dict().items()}
    train(network, stepper, 3)
    moved = {k for k, v in network.module.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"5.weight", "5.bias"}
    network.freeze_backbone(False)
    train(network, stepper, 1, start=3)
    assert not torch.equal(network.module.get_parameter("0.weight"), before["0.weight"])


# --- state ------------------------------------------------------------------------------------------------------


def test_ema_follows_with_a_decay_that_warms_up_and_takes_over_the_statistics() -> None:
    network = tiny()
    stepper = Stepper(network, recipe(optim__ema=0.5), 1)
    average = weights(network.module)["5.weight"]
    for step in range(1, 14):
        train(network, stepper, 1, start=step)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * network.module.get_parameter("5.weight").detach()
    assert stepper.evaluated is not network.module
    torch.testing.assert_close(stepper.evaluated.get_parameter("5.weight"), nn.Parameter(average), check_stride=False)
    torch.testing.assert_close(dict(stepper.evaluated.named_buffers()), dict(network.module.named_buffers()))
    assert not any(p.requires_grad for p in stepper.evaluated.parameters())
    assert trained(1)[1].evaluated.get_parameter("5.weight").requires_grad


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_resuming_goes_on_as_if_never_stopped(name: str) -> None:
    values: dict[str, object] = {"optim__name": name, "optim__ema": 0.9, "optim__schedule": "cosine", "max_epochs": 8}
    through, whole = trained(8, **values)
    network, stepper = trained(4, **values)
    again = tiny()
    resumed = Stepper(again, recipe(**values), 1)
    again.module.load_state_dict(network.module.state_dict())
    resumed.load_state_dict(copy.deepcopy(stepper.state_dict()))
    train(again, resumed, 4, start=4)
    torch.testing.assert_close(weights(again.module), weights(through.module), rtol=0, atol=0)
    torch.testing.assert_close(weights(resumed.evaluated), weights(whole.evaluated), rtol=0, atol=0)
    assert resumed.lr == whole.lr


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_recipe_rules_over_a_restored_state(name: str) -> None:
    _, old = trained(2, optim__name=name, optim__momentum=0.0, regularize__l2=0.5)
    network = tiny()
    stepper = Stepper(network, recipe(optim__name=name, optim__momentum=0.7, regularize__l2=0.1, optim__lr=0.5), 1)
    stepper.load_state_dict(old.state_dict())
    train(network, stepper, 1)
    for group in stepper.optimizer.param_groups:
        assert group["lr"] == 0.5
        assert group["weight_decay"] == (0.1 if group["decayed"] else 0.0)
        assert group.get("betas", (0.7,))[0] == group.get("momentum", 0.7) == 0.7


TORCHS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.5, "nesterov": True}),
    "adam": (torch.optim.Adam, {"betas": (0.5, 0.999)}),
    "adamw": (torch.optim.AdamW, {"betas": (0.5, 0.999)}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_with_a_donors_weights_and_moments_the_next_step_is_that_of_the_new_values(name: str) -> None:
    donor, old = trained(3, optim__name=name, optim__momentum=0.9, regularize__l2=0.5, regularize__weight_decay=3.0)
    decay = "regularize__weight_decay" if name == "adamw" else "regularize__l2"  # what torch's own can do
    network = tiny()
    stepper = Stepper(network, recipe(optim__name=name, optim__momentum=0.5, optim__lr=0.003, **{decay: 0.1}), 1)
    network.module.load_state_dict(donor.module.state_dict())
    stepper.load_state_dict(copy.deepcopy(old.state_dict()))
    in_force = dict(stepper.in_force())
    assert (in_force["optim.lr"], in_force[decay.replace("__", ".")]) == (0.003, 0.1)
    assert in_force.get("optim.momentum", 0.5) == 0.5

    module = copy.deepcopy(donor.module)
    kind, options = TORCHS[name]
    matrices, vectors = ([p for p in module.parameters() if (p.ndim >= 2) == m] for m in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torchs = kind(groups, lr=0.003, **options)
    for theirs, ours in zip(module.parameters(), donor.module.parameters(), strict=True):
        torchs.state[theirs] = copy.deepcopy(old.optimizer.state[ours])
    backward(module, 7)
    torchs.step()

    train(network, stepper, 1, start=7)
    moved = weights(network.module)["5.weight"] - weights(donor.module)["5.weight"]
    assert moved.abs().max() > 1e-4
    torch.testing.assert_close(weights(network.module), weights(module), rtol=1e-5, atol=1e-6)
    assert stepper.steps == 4


def test_a_state_without_average_starts_one_from_the_weights() -> None:
    network, stepper = trained(2)
    with_average = Stepper(network, recipe(optim__ema=0.9), 1)
    with_average.load_state_dict(stepper.state_dict())
    torch.testing.assert_close(weights(with_average.evaluated), weights(network.module))


def test_layer_scales_tokens_and_positions_are_not_decayed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_token = nn.Parameter(torch.ones(1, 1, 4))
            self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
            self.attention = nn.MultiheadAttention(4, 2)
            self.head = nn.Linear(4, 2)

    module = Odd()
    names = {id(p): name for name, p in module.named_parameters()}
    groups = Stepper(Network(module, module.head), recipe(), 1).optimizer.param_groups
    assert {names[id(p)] for g in groups if g["decayed"] for p in g["params"]} == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    }
    assert {names[id(p)] for g in groups if g["head"] for p in g["params"]} == {"head.weight", "head.bias"}


def test_small_resnet_learns_without_norm() -> None:
    torch.manual_seed(0)
    r = recipe(model__width=4, model__norm="none")
    network = build_model(r, 3, 8)
    stepper = Stepper(network, r, 1)
    images, labels = torch.randn(12, 3, 8, 8), torch.arange(12) % 3
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(network.module(images), labels)
        losses.append(loss.item())
        loss.backward()
        stepper.step()
    assert losses[-1] < 0.2 * losses[0]
