"""Recipe: everything that decides how one trial trains, as frozen typed values.

Each value has one dotted name (`augment.strength`). That name is the field, the search key, the
`--set` key, the Parquet column and the axis label; its description and unit are written once, here.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ValidationError, field_validator, model_validator

from cvtune.errors import ConfigError, config_error, did_you_mean
from cvtune.fields import FieldDoc, Section, describe, field, one_of_or_code

Value = bool | int | float | str | None
REFERENCE_BATCH = 64  # images; optim.lr is the rate for this many under optim.lr_scaling


class Data(Section):
    image_size: int = field(128, "Side of the square image that the model sees.", unit="px", ge=8, le=2048)
    store_size: int | None = field(
        None,
        "Shorter side at which decoded images are kept, so that crops need not upsample; never above the "
        "original. None: 1.5 x image_size.",
        unit="px",
        ge=8,
        le=4096,
    )
    fit: Literal["crop", "squash"] = field(
        "crop",
        "How an image becomes square for evaluation: resize the shorter side and crop the center, or squash "
        "both sides to image_size.",
    )
    window_low: float | None = field(
        None,
        "Value of an image, as in its file (CT: Hounsfield units), below which all values count as this one. None: "
        "nothing is cut off.",
        unit="values",
        ge=-3e38,
        le=3e38,
    )
    window_high: float | None = field(
        None, "The same for the values above it. None: nothing is cut off.", unit="values", ge=-3e38, le=3e38
    )
    batch_size: int = field(64, "Images per batch.", unit="images", ge=2, le=65536)
    micro_batch: int | None = field(
        None,
        "Most images of a batch that go through the model at once; their gradients are added up to the batch's. None: "
        "all of them. Where memory runs out it is halved (see the column micro_batch). Batch norm sees only these.",
        unit="images",
        ge=2,
        le=65536,
    )
    oversample: float = field(
        0.0, "How far rare classes are drawn more often: 0 natural frequencies, 1 all classes alike.", ge=0, le=1
    )
    folds: int | None = field(
        None,
        "Parts that training and validation images are divided into. A trial trains once for each, validated on it, "
        "and can be stopped after any (cross-validation; see docs/data.md). None, or 1: the ordinary split.",
        unit="folds",
        ge=1,
        le=100,
    )
    train_fraction: float = field(1.0, "Share of the training images that is used (stratified by class).", gt=0, le=1)
    report_images: int | None = field(
        None,
        "Training images after which a trial reports, saves and can be stopped; None, or more than there are: all of "
        "them. An epoch is then that many images, in max_epochs and schedule too.",
        unit="images",
        ge=8,
    )

    @field_validator("folds")
    @classmethod
    def _one_is_none(cls, value: int | None) -> int | None:
        return None if value == 1 else value

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        low, high = self.window_low, self.window_high
        if low is not None and high is not None and low >= high:
            raise ConfigError(
                f"data.window_low = {low:g} and data.window_high = {high:g} leave nothing between them: the first must "
                "be the smaller one."
            )
        return self


class Augment(Section):
    strength: float = field(
        0.3, "Aggressiveness of the augmentation: 0 is the identity, 1 the strongest.", ge=0, le=1, mutable=True
    )
    geometry: float = field(
        1.0, "Factor on strength for crops, flips, rotation, shear, shift; 0 is off.", ge=0, le=2, mutable=True
    )
    color: float = field(
        1.0, "Factor on strength for brightness, contrast, saturation, hue; 0 is off.", ge=0, le=2, mutable=True
    )
    quality: float = field(1.0, "Factor on strength for blur, noise, compression; 0 is off.", ge=0, le=2, mutable=True)
    occlusion: float = field(1.0, "Factor on strength for erased patches; 0 is off.", ge=0, le=2, mutable=True)
    flip: Literal["none", "horizontal", "both"] = field(
        "horizontal", "Which mirror images keep the label. Digits and text: none. Microscopy, aerial: both."
    )
    mixup: float = field(0.0, "Beta parameter of mixup (Zhang et al. 2018); 0 is off.", ge=0, le=10, mutable=True)
    cutmix: float = field(0.0, "Beta parameter of CutMix (Yun et al. 2019); 0 is off.", ge=0, le=10, mutable=True)
    policy: str = field(
        "families",
        "What augments: 'families' (our own), 'trivial' (TrivialAugment, Mueller & Hutter 2021), or "
        "'python:module:function' (strength, image_size) -> albumentations transform.",
    )

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        return one_of_or_code("augment.policy", value, ("families", "trivial"))


class Regularize(Section):
    strength: float | None = field(
        0.3,
        "One scalar for the whole bundle of regularizers: 0 none, 1 the strongest; None: only the knobs below.",
        ge=0,
        le=1,
        mutable=True,
    )
    dropout: float | None = field(
        None, "Share of features dropped before the last layer. None: set by strength.", ge=0, lt=1, mutable=True
    )
    spatial_dropout: float | None = field(
        None,
        "Share of whole channels dropped between stages (Tompson et al. 2015). None: set by strength.",
        ge=0,
        lt=1,
        mutable=True,
    )
    drop_path: float | None = field(
        None,
        "Share of residual branches skipped at the deepest block, linear from 0 at the first (stochastic depth, "
        "Huang et al. 2016). None: set by strength.",
        ge=0,
        lt=1,
        mutable=True,
    )
    label_smoothing: float | None = field(
        None,
        "Probability mass moved from the label to all classes (Szegedy et al. 2016). None: set by strength.",
        ge=0,
        lt=1,
        mutable=True,
    )
    weight_decay: float | None = field(
        None,
        "Decoupled weight decay (Loshchilov & Hutter 2019): each step multiplies weights by 1 - lr x weight_decay. "
        "None: set by strength, which fixes the product lr x weight_decay.",
        ge=0,
        le=1e4,
        mutable=True,
    )
    l2: float | None = field(
        None, "Coupled L2 penalty, added to the gradient. None: set by strength (0).", ge=0, le=10, mutable=True
    )
    l1: float | None = field(
        None,
        "L1 penalty as a proximal step: weights reach exactly zero. None: set by strength (0).",
        ge=0,
        le=10,
        mutable=True,
    )


class Model(Section):
    name: str = field(
        "small_resnet",
        "Architecture: small_resnet, torchvision:NAME, timm:NAME; to segment images small_unet, torchvision:NAME, "
        "smp:DECODER/ENCODER; or 'python:module:function' (num_classes, recipe) -> torch.nn.Module.",
    )
    pretrained: str | None = field(
        None,
        "None: from scratch; 'default': the best published weights (`cvtune fetch` brings them); else a file, or the "
        "folder of a trial's checkpoint.",
    )
    norm: Literal["batch", "group", "none"] | None = field(
        None,
        "Normalization layer. None: the architecture's own (batch for small_resnet and small_unet). "
        "Batches of a few images want 'group'.",
    )
    freeze_epochs: int = field(
        0,
        "Epochs during which only the last layer is trained, of a segmentation model all that comes after the encoder.",
        unit="epochs",
        ge=0,
        le=10000,
    )
    width: int = field(16, "Channels of the first stage of small_resnet and small_unet.", unit="channels", ge=4, le=512)

    @field_validator("name")
    @classmethod
    def _known_model(cls, value: str) -> str:
        if re.fullmatch(r"torchvision:[a-z0-9_]+|timm:[A-Za-z0-9_.]+|smp:[a-z0-9]+/[A-Za-z0-9_.-]+", value):
            return value  # the name behind the colon is checked where the library may be imported
        more = ("torchvision:NAME", "timm:NAME", "smp:DECODER/ENCODER")
        return one_of_or_code("model.name", value, ("small_resnet", "small_unet"), *more)


class Optim(Section):
    name: Literal["sgd", "adam", "adamw", "adagrad", "rmsprop"] = field("adamw", "Optimizer.")
    lr: float = field(2e-3, "Peak learning rate.", gt=0, le=100, mutable=True)
    lr_scaling: Literal["none", "linear", "sqrt"] = field(
        "none",
        "How lr follows the images per optimizer step, batch_size x accumulate, from the 64 that it is meant for: "
        "linear (SGD: Goyal et al. 2017), by the square root (Adam and its kin: Malladi et al. 2022; Krizhevsky 2014), "
        "or not.",
    )
    backbone_lr_scale: float = field(
        1.0, "Factor on lr for everything but the last layer (fine-tuning wants less than 1).", ge=0, le=10
    )
    momentum: float = field(
        0.9, "Momentum of SGD (Nesterov) and RMSprop; beta1 of Adam and AdamW.", ge=0, lt=1, mutable=True
    )
    schedule: Literal["cosine", "linear", "constant"] = field(
        "cosine", "How the rate falls from lr after the warm-up; the length is max_epochs for every trial."
    )
    warmup_epochs: float = field(
        1.0, "Length of the linear rise from 0 to lr, at most half of max_epochs.", unit="epochs", ge=0, le=1000
    )
    accumulate: int = field(
        1, "Batches whose gradients are averaged into one optimizer step.", unit="batches", ge=1, le=1024
    )
    clip_norm: float | None = field(
        None, "Largest norm of the whole gradient; None: not clipped.", gt=0, le=1e6, mutable=True
    )
    ema: float = field(
        0.0,
        "Decay of the exponential moving average of the weights that is evaluated; 0: the raw weights are.",
        ge=0,
        lt=1,
    )


class Loss(Section):
    name: str = field(
        "cross_entropy",
        "Loss: cross_entropy, or 'python:module:function' (logits, target, recipe) -> one loss per sample.",
    )
    class_weight: float = field(
        0.0, "Exponent e of the weight (1 / class frequency) ** e, mean 1; 0 off, 1 balanced.", ge=0, le=1
    )
    focal_gamma: float = field(0.0, "Focal loss exponent (Lin et al. 2017); 0: plain cross-entropy.", ge=0, le=10)

    @field_validator("name")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return one_of_or_code("loss.name", value, ("cross_entropy",))


class Train(Section):
    loop: str | None = field(
        None,
        "What trains: None: cvtune's own loop, else 'python:module:function' (run) -> generator of reports; see "
        "docs/own_loop.md.",
    )

    @field_validator("loop")
    @classmethod
    def _is_code(cls, value: str | None) -> str | None:
        return value if value is None else one_of_or_code("train.loop", value, ())


class Recipe(Section):
    """Everything that decides how one trial trains. An empty Recipe trains well."""

    data: Data = Data()
    augment: Augment = Augment()
    regularize: Regularize = Regularize()
    model: Model = Model()
    optim: Optim = Optim()
    loss: Loss = Loss()
    train: Train = Train()
    max_epochs: int = field(
        27,
        "Passes over the training images (see data.report_images), of each fold; also the length of the rate schedule.",
        unit="epochs",
        ge=1,
        le=100000,
    )
    patience: int | None = field(
        None,
        "Epochs without a better objective after which a trial, or its fold, ends; None: never.",
        unit="epochs",
        ge=1,
    )
    seed: int = field(0, "Seed of everything random in this trial.", ge=0, le=2**62)
    changes: tuple[tuple[int, dict[str, Value]], ...] = field(
        (), "Values that change during training: ((epoch, {dotted name: value}), ...), epochs rising."
    )

    @model_validator(mode="after")
    def _valid_changes(self) -> Self:
        epochs = [epoch for epoch, _ in self.changes]
        if epochs != sorted(set(epochs)) or any(not 0 < e < self.max_epochs for e in epochs):
            raise ConfigError(
                f"changes happen at epochs {epochs}: they must rise and lie between 1 and max_epochs - 1 "
                f"= {self.max_epochs - 1}."
            )
        current: Recipe = self.model_copy(update={"changes": ()})
        for _, values in self.changes:
            for name in values:
                if name not in CHANGEABLE:
                    raise ConfigError(
                        f"changes: {name!r} cannot change during training. {did_you_mean(name, CHANGEABLE)}"
                    )
            current = current.replace(values)
        return self

    def flat(self) -> dict[str, Value]:
        """Every value under its dotted name (`changes` excepted, which is no single value)."""
        return {name: _get(self, name) for name in FIELDS}

    @property
    def total_epochs(self) -> int:
        """Epochs of a trial that nobody stops: `max_epochs`, for each fold where there are any."""
        return self.max_epochs * (self.data.folds or 1)

    @property
    def rounds(self) -> int:
        """How often a trial may be stopped by a scheduler, the end included: after each epoch, or after each fold."""
        return self.data.folds or self.max_epochs

    @property
    def peak_lr(self) -> float:
        """The peak rate of the last layer: `optim.lr`, scaled as `optim.lr_scaling` says."""
        ratio = self.data.batch_size * self.optim.accumulate / REFERENCE_BATCH
        return self.optim.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.optim.lr_scaling]

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Every `data.image_size` that an epoch may have, in the order of `changes`; the last one is what is scored."""
        return self.data.image_size, *(self.at(epoch).data.image_size for epoch, _ in self.changes)

    @property
    def largest(self) -> Data:
        """`data` with the largest image size of any epoch: what models are built and images are decoded for."""
        return self.data.model_copy(update={"image_size": max(self.image_sizes)})

    def replace(self, values: Mapping[str, Any]) -> Recipe:
        """This recipe with some values, given by dotted name, set to others.

        Raises:
            ConfigError: a name is unknown (with the nearest valid one) or a value is out of its range.
        """
        tree = self.model_dump()
        for name, value in values.items():
            if name != "changes" and name not in FIELDS:
                raise ConfigError(f"{name!r} is not a value of a recipe. {did_you_mean(name, FIELDS)}")
            section, _, leaf = name.rpartition(".")
            (tree[section] if section else tree)[leaf] = value
        try:
            return Recipe.model_validate(tree)
        except ValidationError as error:
            raise config_error(error) from None

    def at(self, epoch: int) -> Recipe:
        """The values in force during `epoch` (counted from 0): `changes` up to it applied."""
        values: dict[str, Value] = {}
        for start, change in self.changes:
            if start <= epoch:
                values |= change
        return self.replace(values) if values else self


def _get(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = getattr(tree, part)
    return tree


FIELDS: Mapping[str, FieldDoc] = types.MappingProxyType(describe(Recipe))
MUTABLE: tuple[str, ...] = tuple(name for name, doc in FIELDS.items() if doc.mutable)
CHANGEABLE: tuple[str, ...] = ("data.image_size", *MUTABLE)
"""What `changes` may name. Progressive resizing is planned: a population does not take over weights across sizes."""
