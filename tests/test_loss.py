"""Each knob of the training loss against its formula."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from cvtune.errors import ConfigError
from cvtune.loss import build_loss, class_weights
from cvtune.recipe import Recipe
from cvtune.regularize import resolve

COUNTS = torch.tensor([10, 40, 50])


def recipe(**values: object) -> Recipe:
    plain = {"regularize.strength": None} | {name.replace("__", "."): value for name, value in values.items()}
    return resolve(Recipe().replace(plain))


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(8, 3, generator=generator),
        torch.randint(0, 3, (8,), generator=generator),
        torch.randint(0, 3, (8,), generator=generator),
    )


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def test_plain_is_torchs_cross_entropy(batch: Batch) -> None:
    logits, a, b = batch
    torch.testing.assert_close(build_loss(recipe(), COUNTS)(logits, a, b, 1.0), F.cross_entropy(logits, a))


def test_label_smoothing(batch: Batch) -> None:
    logits, a, b = batch
    loss = build_loss(recipe(regularize__label_smoothing=0.1), COUNTS)(logits, a, b, 1.0)
    target = 0.9 * F.one_hot(a, 3) + 0.1 / 3
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())


def test_mixed_labels_are_weighed_by_their_share(batch: Batch) -> None:
    logits, a, b = batch
    mixed = build_loss(recipe(), COUNTS)(logits, a, b, 0.3)
    torch.testing.assert_close(mixed, 0.3 * F.cross_entropy(logits, a) + 0.7 * F.cross_entropy(logits, b))


def test_class_weights_are_powers_of_inverse_frequency_with_mean_one(batch: Batch) -> None:
    torch.testing.assert_close(class_weights(COUNTS, 1.0), (1 / COUNTS) / (1 / COUNTS).mean())
    torch.testing.assert_close(class_weights(COUNTS, 0.5)[0] / class_weights(COUNTS, 0.5)[1], torch.tensor(2.0))
    assert class_weights(torch.tensor([0, 5]), 1.0).isfinite().all()
    logits, a, b = batch
    weighed = build_loss(recipe(loss__class_weight=1.0), COUNTS)(logits, a, b, 1.0)
    expected = F.cross_entropy(logits, a, reduction="none") * class_weights(COUNTS, 1.0)[a]
    torch.testing.assert_close(weighed, expected.mean())


def test_focal_loss_forgives_easy_samples(batch: Batch) -> None:
    logits, a, b = batch
    p = logits.softmax(1)[torch.arange(8), a]
    focal = build_loss(recipe(loss__focal_gamma=2.0), COUNTS)(logits, a, b, 1.0)
    torch.testing.assert_close(focal, ((1 - p) ** 2 * -p.log()).mean())


def test_focal_loss_has_a_finite_gradient_at_certainty() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    y = torch.tensor([0])
    build_loss(recipe(loss__focal_gamma=0.5), COUNTS)(logits, y, y, 1.0).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_low_precision_logits_give_a_float32_loss(batch: Batch) -> None:
    logits, a, b = batch
    assert build_loss(recipe(), COUNTS)(logits.bfloat16(), a, b, 0.5).dtype == torch.float32


@pytest.fixture
def user_code(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("cvtune_test_losses")
    module.squared = lambda logits, y, recipe: ((logits - F.one_hot(y, 3)) ** 2).sum(1)  # type: ignore[attr-defined]
    module.mean = lambda logits, y, recipe: F.cross_entropy(logits, y)  # type: ignore[attr-defined]
    module.broken = lambda logits, y, recipe: logits @ logits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_user_loss_is_mixed_and_weighed_like_ours(batch: Batch, user_code: types.ModuleType) -> None:
    logits, a, b = batch
    own = recipe(loss__name="python:cvtune_test_losses:squared", loss__class_weight=1.0)
    weights = class_weights(COUNTS, 1.0)
    expected = sum(
        part * (user_code.squared(logits, y, None) * weights[y]).mean() for part, y in ((0.25, a), (0.75, b))
    )
    torch.testing.assert_close(build_loss(own, COUNTS)(logits, a, b, 0.25), expected)


@pytest.mark.parametrize(("function", "complaint"), [("mean", "one loss per sample"), ("broken", "RuntimeError")])
def test_user_loss_that_is_wrong(batch: Batch, user_code: types.ModuleType, function: str, complaint: str) -> None:
    logits, a, b = batch
    loss = build_loss(recipe(loss__name=f"python:cvtune_test_losses:{function}"), COUNTS)
    with pytest.raises(ConfigError, match=complaint):
        loss(logits, a, b, 1.0)


def test_a_user_loss_that_runs_out_of_gpu_memory_may_have_its_batch_divided(
    batch: Batch, user_code: types.ModuleType
) -> None:
    def full(*given: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    user_code.squared = full  # type: ignore[attr-defined]
    loss = build_loss(recipe(loss__name="python:cvtune_test_losses:squared"), COUNTS)
    with pytest.raises(torch.OutOfMemoryError):  # what `microbatch` listens for
        loss(*batch, 1.0)


def test_focal_gamma_is_refused_beside_a_user_loss(user_code: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"loss\.focal_gamma"):
        build_loss(recipe(loss__name="python:cvtune_test_losses:squared", loss__focal_gamma=1.0), COUNTS)
