"""Epoch: what a trial reports after one pass over the training images (or over `data.report_images` of them).

Numbers only, no torch, no Ray. The names here are the Parquet columns, the objective a study may choose, and the keys
of the journal. What a task does not have is None there; journals of earlier versions lack the newer ones.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ByClass = list[float | None] | None  # one value per class; None where it does not occur
Score = float | ByClass  # None where the task has none


def _metric(description: str, unit: str = "", goal: str = "", default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"description": description, "unit": unit, "goal": goal})


@dataclass(frozen=True, slots=True)
class Epoch:
    """One report of a trial. Made once; every sink (scheduler, journal, tables, tracking) gets the same numbers."""

    step: int = _metric("Reports of this trial so far; never goes back.", "reports")
    epoch: int = _metric("Age of the weights; below step after weights of a younger trial were taken over.", "epochs")
    train_loss: float = _metric("Mean training loss over the epoch, augmented images, in train mode.", "nats", "min")
    train_accuracy: float = _metric("Share of augmented training images predicted right.", "", "max")
    clean_loss: float = _metric("Cross-entropy on a fixed slice of train without augmentation.", "nats", "min")
    clean_accuracy: float = _metric("Accuracy on a fixed slice of train without augmentation.", "", "max")
    val_loss: float = _metric("Cross-entropy on the validation images (their pixels, their tags).", "nats", "min")
    val_accuracy: float = _metric("Share of validation images (pixels, tags) predicted right.", "", "max")
    val_balanced_accuracy: float | None = _metric("Mean over classes of recall on the validation images.", "", "max")
    val_worst_recall: float | None = _metric("Lowest recall of any class on the validation images.", "", "max")
    val_macro_f1: float | None = _metric("Mean over classes of the F1 score on the validation images.", "", "max")
    val_ece: float | None = _metric("Expected calibration error, 15 bins (Guo et al. 2017), validation.", "", "min")
    val_mean_iou: float | None = _metric(
        "Mean over classes of the intersection over union of all validation pixels.", "", "max"
    )
    val_dice: float | None = _metric(
        "Mean over validation images of the Dice score, a mean over the classes in mask or prediction.", "", "max"
    )
    val_map: float | None = _metric("Mean over classes of the average precision, validation.", "", "max")
    val_recall: ByClass = _metric("Recall of each class on the validation images; null: not there.")  # noqa: RUF009
    val_iou: ByClass = _metric("Intersection over union of each class, validation pixels; null: not there.")  # noqa: RUF009
    lr: float = _metric("Effective learning rate of the last layer, mean over the epoch's steps.")
    weight_decay: float = _metric("Effective decoupled weight decay, of the epoch's last step.")
    dropout: float = _metric("Effective share of features dropped before the last layer; 0 in user code.")
    augment_strength: float = _metric("Effective strength of the augmentation.")
    grad_norm: float = _metric("Norm of the whole gradient before clipping, mean over the epoch's steps.")
    zero_weights: float = _metric("Share of decayed weights that are exactly zero.")
    weight_norm: float = _metric("L2 norm of all decayed weights together.")
    seconds: float = _metric("Wall-clock time of the epoch, evaluation included.", "s")
    images_per_second: float = _metric("Training images per second of training time.", "images/s")
    data_wait: float = _metric("Share of training time spent waiting for augmented batches.")
    peak_memory: float = _metric("Peak memory: of the GPU where one is used, else of the process.", "MB")
    parameters: int = _metric("Parameters of the model, frozen ones too.")
    image_ms: float = _metric(
        "Copy to the device and forward pass of a validation image, in batches of up to 256, without decoding.", "ms"
    )
    micro_batch: int = _metric(
        "Most images that go through the model at once: a batch, less with data.micro_batch or where memory ran out.",
        "images",
    )
    probe_flips: float | None = _metric(
        "Share of predictions on the probe set, up to 512 fixed validation images, that differ from the last report's.",
        default=None,
    )
    probe_confidence: float | None = _metric("Mean probability of what is predicted on the probe set.", default=None)
    probe_entropy: float | None = _metric(
        "Entropy of the predicted classes on the probe set over that of the right ones: 0 if all are told alike.",
        default=None,
    )
    probe_area: float | None = _metric(
        "Of masks: share of the probe set's labelled points that are predicted as another class than the first.",
        default=None,
    )
    start_loss: float | None = _metric(
        "clean_loss before the first step; in the first report only (of each fold).", "nats", default=None
    )
    fold: int | None = _metric(
        "Fold that is trained, from 1: its images are the validation images. Null without data.folds.", default=None
    )
    folds: int | None = _metric("Folds that are finished with this report.", "folds", default=None)
    folds_mean: float | None = _metric(
        "At the end of a fold: mean over the finished folds of the best objective of each. Else null.", default=None
    )
    folds_sd: float | None = _metric("Standard deviation of what folds_mean is the mean of.", default=None)
    fold_scores: ByClass = _metric("What folds_mean is the mean of, a value for each finished fold.", default=None)  # noqa: RUF009

    def numbers(self) -> dict[str, Score]:
        """The values by name, in the order of declaration; plain JSON but for NaN."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def is_finite(self) -> bool:
        """Whether training is still sane: neither the training nor the validation loss is NaN or infinite."""
        return math.isfinite(self.train_loss) and math.isfinite(self.val_loss)


@dataclass(frozen=True)
class MetricDoc:
    description: str
    unit: str
    goal: str  # "max", "min", or "" when it is no objective
    kind: type  # int, float, or list: one float per class (or fold)
    lacking: bool  # some tasks do not have it


METRICS: Mapping[str, MetricDoc] = types.MappingProxyType(
    {
        f.name: MetricDoc(
            f.metadata["description"],
            f.metadata["unit"],
            f.metadata["goal"],
            int if str(f.type).startswith("int") else list if f.type == "ByClass" else float,
            str(f.type).endswith(("| None", "ByClass")),
        )
        for f in dataclasses.fields(Epoch)
    }
)
FOLDS = ("fold", "folds", "folds_mean", "folds_sd", "fold_scores")  # what only data.folds gives
OBJECTIVES: tuple[str, ...] = tuple(name for name, doc in METRICS.items() if doc.goal)
