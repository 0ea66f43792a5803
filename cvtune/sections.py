"""What a Study says beside its Recipe and Space: where the images are, how much is tried, on what, and who watches."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from cvtune.errors import ConfigError, did_you_mean
from cvtune.fields import Section, field
from cvtune.on_gpu import OnGpu
from cvtune.recipe import FIELDS, Recipe
from cvtune.room import selector

TORCHVISION = "torchvision:"  # begins a data.source that torchvision.datasets knows
MANIFESTS = (".csv", ".parquet")  # end one that is a table with a row per image
ARCHIVES = (".zip", ".tar", ".parquet")  # what a data.source may end with that holds many images


class Source(Section):
    source: str = field(
        "digits",
        "Where the images are: a folder, a manifest (.csv, .parquet), an .npz file, archives (.zip, .tar or .parquet: "
        "one, a folder of them, or a pattern such as 'shards/{000..127}.tar'), digits (embedded), "
        "'torchvision:NAME' (a published set that `cvtune fetch` brings), or 'python:module:function'.",
    )
    masks: str = field("masks", "Name of the folder beside images/ that holds the masks, where the source has any.")
    mask_values: tuple[int, ...] | None = field(
        None,
        "Values of the masks in the order of their classes, such as [1, 2, 3], or [0, 255]; what is left out is no "
        "class. None: 0, 1, .. and 255 for none, or 0 and 255 where no mask holds anything else.",
    )
    classes: dict[str, str | None] = field(
        {},
        "Classes that are renamed, merged (the same new name) or ignored (null): {name in the data: new name}. Names "
        "left out stay.",
    )
    val_share: float = field(0.15, "Share split off for validation where the source has no val part.", gt=0, lt=0.5)
    test_share: float = field(0.15, "Share split off for the final test where the source has none.", ge=0, lt=0.5)
    split_seed: int = field(0, "Seed of that split and of data.folds (by class; groups stay whole).", ge=0, le=2**62)
    max_corrupt: float = field(
        0.01,
        "Share of images that is skipped and counted because they, or their masks, cannot be used; above it we refuse.",
        ge=0,
        le=1,
    )

    @field_validator("masks")
    @classmethod
    def _plain_folder(cls, value: str) -> str:
        if value in ("", ".", "..") or "/" in value or "\\" in value:
            raise ConfigError(f"data.masks = {value!r} must be the name of a folder beside images/, not a path.")
        return value

    @field_validator("mask_values")
    @classmethod
    def _different_bytes(cls, values: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if values is not None and (
            not 2 <= len(values) <= 255 or len(set(values)) < len(values) or not all(0 <= v <= 255 for v in values)
        ):
            raise ConfigError(
                f"data.mask_values = {list(values)} must be two or more different values of 0..255: the first is that "
                "of the first class. Values of one class are brought together by data.classes."
            )
        return values


class Budget(Section):
    trials: int = field(
        32,
        "Trials to search with; 0: only confirm `candidates`. Noise trials come on top.",
        unit="trials",
        ge=0,
        le=10**6,
    )
    epochs: int | None = field(
        None, "Epochs of the search, noise trials included; None: no bound.", unit="epochs", ge=1
    )
    time_s: float | None = field(
        None, "Wall-clock time of the search from the start of this run; None: no bound.", unit="s", gt=0
    )
    gpu_hours: float | None = field(
        None, "GPU time of the search, CPU time where trials have no GPU; None: no bound.", unit="h", gt=0
    )
    until_noise: bool = field(
        False, "End the search once the expected improvement over the best score falls below the noise floor."
    )


class Resources(Section):
    cpu: float = field(1, "CPU cores of one trial.", unit="cores", gt=0, le=1024)
    gpu: float | Literal["auto"] | None = field(
        None,
        "GPUs of one trial: below 1 several trials share one; 2, 3, ... are used together, on one node. auto: as many "
        "trials share one as memory, speed and CPU cores allow, measured at the start. None: 1 where the cluster has "
        "any, else 0.",
    )
    gpu_augment: Literal["auto", "on", "off"] = field(
        "auto",
        "Whether a GPU augments the images that it trains on, with other random numbers than the CPU. auto: photos "
        "under the policy 'families' that fit into a quarter of its memory.",
    )
    gpu_graph: Literal["auto", "on", "off"] = field(
        "auto",
        "Whether a GPU is given each training step as one CUDA graph instead of kernel by kernel. auto: unless model "
        "or loss are your own code, which may decide something anew for each batch; on: your code as well.",
    )
    gpu_mps: bool = field(
        True,
        "Whether trials that share a GPU do so by NVIDIA's Multi-Process Service, where it is installed: their kernels "
        "run side by side instead of taking turns.",
    )
    label: str | None = field(
        None,
        "Labels of the nodes that trials run on, such as 'ray.io/accelerator-type=H100' or 'KEY=in(A,B),OTHER=!C'; "
        "None: any.",
    )
    niceness: int = field(
        15,
        "Niceness of trials where cvtune starts Ray itself: 15, Ray's own, lets everything else on the machine go "
        "first; 0 asks for an equal share.",
        ge=0,
        le=19,
    )
    max_concurrent: int | None = field(None, "Most trials at once; None: as many as fit.", unit="trials", ge=1)
    wait_s: float = field(
        0, "Time to wait for a node that can hold a trial, where a study begins before its nodes.", unit="s", ge=0
    )
    cache_gb: float | None = field(
        None,
        "Most disk that decoded images may take, for each image size that is searched; None: half of what is free.",
        unit="GB",
        ge=0,
    )
    hang_s: float = field(
        1800,
        "Time without progress (a batch, a batch of the evaluation, a checkpoint) after which a trial's process is "
        "ended; it is taken up again once.",
        unit="s",
        ge=1,
    )
    retries: int = field(3, "Times that a trial is taken up again after its process or node was lost.", ge=0, le=1000)

    @field_validator("gpu")
    @classmethod
    def _part_or_whole(cls, value: float | Literal["auto"] | None) -> float | Literal["auto"] | None:
        if isinstance(value, float) and not (0 <= value <= 1 or (value <= 64 and value.is_integer())):
            raise ConfigError(
                f"resources.gpu = {value:g} must be a share of a GPU from 0 to 1, a whole number of them up to 64, "
                "'auto', or None."
            )
        return value

    @field_validator("label")
    @classmethod
    def _as_ray_takes_it(cls, value: str | None) -> str | None:
        selector(value)
        return value

    def refusal(self, recipe: Recipe) -> str | None:
        """Why a study of `recipe` cannot be given this, in words; None if it can."""
        if self.gpu == "auto" and recipe.train.loop is not None:
            return (
                f"resources.gpu = 'auto' measures cvtune's own training loop, but train.loop = {recipe.train.loop!r}. "
                "Give a number."
            )
        if isinstance(self.gpu, float) and self.gpu > 1 and recipe.data.folds:
            return (
                f"resources.gpu = {self.gpu:g} with data.folds = {recipe.data.folds}: a trial over folds does not span "
                "several GPUs. Take resources.gpu = 1, so that several trials run at once."
            )
        return None

    @property
    def labels(self) -> dict[str, str]:
        """`label` by key, as Ray takes it."""
        return selector(self.label)

    @property
    def on_gpu(self) -> OnGpu:
        """What a trial's process is told of its GPU."""
        return OnGpu(self.gpu_augment, self.gpu_graph)

    @property
    def cache_bytes(self) -> int | None:
        """`cache_gb` in bytes."""
        return None if self.cache_gb is None else int(self.cache_gb * 1e9)


class Confirm(Section):
    top: int = field(2, "Best recipes that are trained again with fresh seeds after the search; 0: none.", ge=0, le=100)
    per: str | None = field(
        None,
        "Name of a searched Choice, such as optim.name: top then counts the best recipes of each of its values, so "
        "that they are compared at their best. None: the best of all.",
    )
    seeds: int = field(3, "Fresh seeds for each of them.", ge=2, le=100)
    baselines: bool = field(
        True,
        "Whether the default recipe and TrivialAugment are confirmed beside them, which tells what the search has "
        "gained; without, more seeds can be had in the same time.",
    )
    ablate: bool = field(
        False,
        "Whether the best recipe is confirmed with one knob of its augmentation and regularization left out at a time "
        "as well, which tells what each is worth.",
    )

    @field_validator("per")
    @classmethod
    def _known_name(cls, value: str | None) -> str | None:
        if value is not None and value not in FIELDS:
            raise ConfigError(f"confirm.per = {value!r} is not a value of a recipe. {did_you_mean(value, FIELDS)}")
        return value


class Tracking(Section):
    mode: Literal["auto", "online", "offline", "off"] = field(
        "auto",
        "Weights & Biases: online; offline (W&B's own files, in the study's folder); off; auto: online where a key is "
        "configured, else off.",
    )
    project: str = field("cvtune", "W&B project that the study's runs belong to.")
    entity: str | None = field(None, "W&B team or user that owns the project; None: the key's own default.")
    private: bool = field(
        False, "Whether nothing about single images may leave: no media, no table of errors, no predictions."
    )
    strip: int = field(
        8,
        "Validation images whose predictions are drawn as a strip at each report (see `strips.py`); 0: none.",
        unit="images",
        ge=0,
        le=32,
    )
    wait_s: float = field(60, "Most time to wait for W&B once everything else is done.", unit="s", ge=0, le=86400)

    @field_validator("project", "entity")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
            raise ConfigError(
                f"{value!r} cannot name a project or team of W&B. Use letters, digits, '.', '_' and '-', at most 128; "
                "the team stands in tracking.entity, the project in tracking.project."
            )
        return value
