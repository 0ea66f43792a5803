"""Metrics of a classifier against sklearn and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics.functional
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from cvtune.metrics import classification


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (300,), generator=generator)
    logits = 2 * torch.randn(300, 5, generator=generator)
    logits[torch.arange(300), labels] += 1.0
    return logits, labels


def test_agrees_with_sklearn(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    values, predicted = classification(logits, labels), logits.argmax(1)
    assert values["accuracy"] == pytest.approx((predicted == labels).float().mean().item())
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert values["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert values["loss"] == pytest.approx(log_loss(labels, logits.double().softmax(1)), rel=1e-5)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0, 30.0])
def test_agrees_with_torchmetrics(batch: tuple[torch.Tensor, torch.Tensor], sharpness: float) -> None:
    logits, labels = batch[0] * sharpness, batch[1]
    values, options = classification(logits, labels), {"task": "multiclass", "num_classes": 5}
    assert values["ece"] == pytest.approx(
        torchmetrics.functional.calibration_error(logits, labels, **options).item(), abs=1e-6
    )
    assert values["macro_f1"] == pytest.approx(
        torchmetrics.functional.f1_score(logits, labels, average="macro", **options).item()
    )
    assert values["balanced_accuracy"] == pytest.approx(
        torchmetrics.functional.accuracy(logits, labels, average="macro", **options).item()
    )


def test_ece_is_the_gap_between_confidence_and_accuracy() -> None:
    logits = torch.log(torch.tensor([[0.9, 0.1]] * 10))
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert classification(logits, labels)["ece"] == pytest.approx(0.3, abs=1e-5)


def test_classes_without_samples_stay_out_of_the_means() -> None:
    logits = torch.eye(4)[[0, 0, 1, 3]] * 5  # class 2 occurs nowhere, class 3 only as a prediction
    values = classification(logits, torch.tensor([0, 0, 1, 1]))
    assert values["accuracy"] == 0.75
    assert values["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert values["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["recall"] == [1.0, 0.5, None, None] and values["worst_recall"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_gets_the_worst_values(bad: float, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits = batch[0].clone()
    logits[3, 1] = bad
    values = classification(logits, batch[1])
    assert not math.isfinite(values.pop("loss"))
    assert values.pop("recall") == [0.0] * 5
    assert values == {"accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0, "worst_recall": 0.0, "ece": 1.0}


def test_certain_and_low_precision_logits() -> None:
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], dtype=torch.bfloat16)
    assert classification(logits, torch.tensor([0, 1])) == {
        "loss": 0.0,
        "accuracy": 1.0,
        "balanced_accuracy": 1.0,
        "macro_f1": 1.0,
        "worst_recall": 1.0,
        "ece": 0.0,
        "recall": [1.0, 1.0],
    }
