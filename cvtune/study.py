"""Study: a base Recipe, what is searched around it, by which scheduler and searcher, with which budget."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from cvtune.building import built
from cvtune.epoch import FOLDS, METRICS, OBJECTIVES
from cvtune.errors import ConfigError, config_error, did_you_mean, short
from cvtune.fields import Section, describe, field
from cvtune.objective import AUTO
from cvtune.printable import first_line
from cvtune.recipe import FIELDS, Recipe, Value
from cvtune.schedulers import ASHA, PB2, PBT, Scheduler, folds_refusal
from cvtune.searchers import Random, Searcher
from cvtune.sections import ARCHIVES, MANIFESTS, TORCHVISION, Budget, Confirm, Resources, Source, Tracking
from cvtune.space import Choice, LogUniform, Space, Uniform, space

FORMAT = 1  # of study.json; a reader accepts its own and every lower number


class Observation(Section):
    """What an earlier study measured at one point: its best score, the epochs trained, whether it ran to the end."""

    values: dict[str, Value]
    score: float
    epochs: int
    complete: bool


class Study(Section):
    """What `cvtune run` runs. Frozen; the same definition gives the same `study.json`.

    Attributes:
        limits: metric -> the most that it may be, such as {"parameters": 1e6, "image_ms": 2.0}; a trial above a
            limit ends after its first epoch and is never best.
        candidates: name -> recipe that is confirmed beside the best ones found.
        points: searched values to try first, in this order; names left out are proposed by the searcher.
        prior: what an earlier study measured (see `cvtune run --warm-start`); the searcher learns from it.
    """

    name: str = field("study", "Name of the study and of its folder.")
    data: Source = Source()
    recipe: Recipe = Recipe()
    space: Space = Space()
    scheduler: Scheduler = ASHA()
    searcher: Searcher = Random()
    budget: Budget = Budget()
    resources: Resources = Resources()
    objective: str = field(
        AUTO,
        "Metric that decides which trial is better; auto: settled once the images are known, see `objective.py` "
        "(val_accuracy, or val_balanced_accuracy where classes are imbalanced; val_mean_iou; val_map).",
    )
    mode: Literal["max", "min"] | None = field(None, "Direction of the objective; None: the metric's own.")
    limits: dict[str, float] = {}
    noise_seeds: int = field(
        3,
        "Trials of the default recipe that run first, each with its own seed; their spread is the noise floor.",
        ge=0,
        le=100,
    )
    confirm: Confirm = Confirm()
    tracking: Tracking = Tracking()
    candidates: dict[str, Recipe] = {}
    points: tuple[dict[str, Value], ...] = ()
    prior: tuple[Observation, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ConfigError(
                f"name = {short(value)}: the name becomes a folder. Use letters, digits, '.', '_' and '-', at most 100."
            )
        return value

    @field_validator("confirm", "tracking", mode="before")
    @classmethod
    def _not_none(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            off = "Confirm(top=0)" if info.field_name == "confirm" else 'Tracking(mode="off")'
            raise ConfigError(f"{info.field_name} = None: write {off} to switch it off, or leave it out.")
        return value

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str) -> str:
        if value not in (AUTO, *OBJECTIVES):
            raise ConfigError(
                f"objective = {value!r} is not a metric to compare by. {did_you_mean(value, (AUTO, *OBJECTIVES))}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode not in (None, self.better):
            raise ConfigError(
                f"mode = {self.mode!r}: {self.objective} is better the other way. Use {self.better!r} or leave it out."
            )
        refused = self.scheduler.refusal(self.space, self.recipe.rounds, self.searcher.name, self.budget.trials)
        refused = refused or self.searcher.refusal(self.space)
        if folds := self.recipe.data.folds:
            refused = folds_refusal(self.scheduler, folds, refused)
        refused = refused or self.resources.refusal(self.recipe)
        if refused is not None:
            raise ConfigError(refused)
        searched = "data.image_size" in self.space.domains
        sizes = [domain for _, domain in self.space.cases("data.image_size")] if searched else []
        if self.recipe.data.store_size is None and not all(isinstance(domain, Choice) for domain in sizes):
            raise ConfigError(
                "space: 'data.image_size' has a range, but images are decoded and kept once for every size. Search a "
                "Choice of a few sizes, or keep one size for all with data.store_size."
            )
        per = self.space.domains.get(self.confirm.per or "")
        if per is not None and not isinstance(per, Choice):
            raise ConfigError(
                f"confirm.per = {self.confirm.per!r}: the best recipe of each value is confirmed, so it must be a "
                f"Choice, but is searched over a {type(per).__name__}. Search a Choice, or leave it out."
            )
        for point in [*self.points, *(seen.values for seen in self.prior)]:
            self.space.check_point(point)
        for name in self.candidates:
            if name in ("default", "trivial") or not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,39}", name):
                raise ConfigError(
                    f"candidates: {name!r} cannot name a recipe. Begin with a letter; use letters, digits, '.', '_' "
                    "and '-', at most 40; 'default' and 'trivial' are the baselines."
                )
            if (other := self.candidates[name].data.folds) not in (None, folds):
                raise ConfigError(
                    f"candidates: {name!r} has data.folds = {other}, the study {folds}: all recipes are compared "
                    "alike. Leave it out there: the study's holds for all."
                )
        for name in self.limits:
            numbers = [metric for metric, doc in METRICS.items() if doc.kind is not list and metric not in FOLDS]
            if name not in numbers:
                raise ConfigError(f"limits.{name}: no trial reports this number. {did_you_mean(name, numbers)}")
        return self

    def score(self, report: Mapping[str, Any]) -> float | None:
        """What a report says of how good its trial is: the objective, with folds the mean over those finished.

        None where it says nothing, as within a fold.
        """
        value: float | None = report.get("folds_mean" if self.recipe.data.folds else self.objective)
        return value

    def is_judged(self, report: Mapping[str, Any]) -> bool:
        """Whether schedulers, searchers and ranks take notice of a report: of every one, but not within a fold."""
        return not self.recipe.data.folds or report.get("folds_mean") is not None

    def round(self, report: Mapping[str, Any]) -> int:
        """How far a trial is at a report, of `recipe.rounds`: the age of its weights, or the folds finished."""
        return int(report["folds" if self.recipe.data.folds else "epoch"])

    @property
    def better(self) -> Literal["max", "min"]:
        """The direction of the objective. All that auto may become are better when larger."""
        return "max" if self.objective == AUTO or METRICS[self.objective].goal == "max" else "min"

    @property
    def most_confirmed(self) -> int:
        """How many recipes are confirmed at most, baselines included; 0: there is no confirmation."""
        if not self.confirm.top and not self.candidates:
            return 0
        per = self.space.domains.get(self.confirm.per or "")
        found = self.confirm.top * (len(per.values) if isinstance(per, Choice) else 1)
        return found + len(self.candidates) + 2 * self.confirm.baselines

    @property
    def user_code(self) -> tuple[str, ...]:
        """Every 'python:module:function' that this study names, the searched ones included."""
        named: list[Value] = [self.data.source, *self.recipe.flat().values()]
        named += [value for recipe in self.candidates.values() for value in recipe.flat().values()]
        named += [value for domain in self.space.domains.values() for value in domain.edges()]
        return tuple(sorted({v for v in named if isinstance(v, str) and v.startswith("python:")}))

    def over_limits(self, metrics: Mapping[str, Any]) -> str | None:
        """The first limit that a report breaks, in words; None if it keeps them all."""
        for name, most in self.limits.items():
            value = metrics.get(name)
            if value is not None and value > most:
                return f"limits.{name} = {most:g}: this trial has {value:.6g}"
        return None

    def settled(self, objective: str) -> Study:
        """This study as it runs: with `objective` in the place of auto. Nothing that runs may see auto."""
        return self.model_copy(update={"objective": objective}) if self.objective == AUTO else self

    def trial(self, index: int, values: Mapping[str, Value]) -> Recipe:
        """The Recipe of trial `index` with the searched `values`, and a seed of its own unless that is searched."""
        import numpy as np  # late, as in `space.py`

        seed = int(np.random.SeedSequence([self.recipe.seed, index]).generate_state(1, np.uint32)[0])
        return self.recipe.replace({"seed": seed, **values})

    def set(self, values: Mapping[str, Any]) -> Study:
        """This study with some values, given by dotted name, set to others. A searched name leaves the space.

        Raises:
            ConfigError: a name is unknown (with the nearest valid one) or a value is out of its range.
        """
        tree = self.model_dump()
        fixed = {name: value for name, value in values.items() if name in FIELDS or name == "changes"}
        tree["recipe"] = self.recipe.replace(fixed)
        tree["space"] = self.space.without(fixed)
        valid = {
            **FIELDS,
            **SETTINGS,
            **dict.fromkeys(("data.classes", "data.mask_values")),  # no single value
            **describe(_kind(Scheduler, values.get("scheduler.name"), self.scheduler), "scheduler."),
            **describe(_kind(Searcher, values.get("searcher.name"), self.searcher), "searcher."),
        }
        for name, value in sorted(values.items(), key=lambda item: item[0].endswith("er.name"), reverse=True):
            if name in fixed:
                continue
            section, _, leaf = name.rpartition(".")
            if section == "limits":
                tree["limits"][leaf] = value
            elif name in ("scheduler.name", "searcher.name"):
                tree[section] = {
                    "name": value,
                    **{k: v for k, v in tree[section].items() if tree[section]["name"] == value},
                }
            elif name in valid:
                (tree[section] if section else tree)[leaf] = value
            else:
                raise ConfigError(f"{name!r} cannot be set. {did_you_mean(name, valid)}")
        return make(tree)

    def definition(self) -> dict[str, Any]:
        """What makes this study this study, as plain JSON: everything but how much, on what it runs, and who watches.

        The size of a population belongs to it: who comes later meets nobody of its age.
        """
        population = {"population": self.budget.trials} if isinstance(self.scheduler, PBT | PB2) else {}
        return self.model_dump(mode="json", exclude={"budget", "resources", "tracking"}) | population

    def to_json(self, provenance: Mapping[str, Any]) -> str:
        """The text of `study.json`."""
        return json.dumps(
            {"format": FORMAT, "study": self.model_dump(mode="json"), "provenance": dict(provenance)}, indent=2
        )


SETTINGS = describe(Study)
for _name in FIELDS:  # the recipe's own names are set without the prefix
    del SETTINGS[f"recipe.{_name}"]
SETTINGS = {name: doc for name, doc in SETTINGS.items() if not name.startswith("space.")}


def _kind(union: Any, name: Any, current: Section) -> type[Section]:
    """The description that `name` stands for among those of a discriminated union; that of `current` for None."""
    kinds: dict[Any, type[Section]] = {kind.model_fields["name"].default: kind for kind in get_args(get_args(union)[0])}
    return kinds.get(name, type(current))


def make(tree: Mapping[str, Any]) -> Study:
    """A Study from plain values, with errors in cvtune's style."""
    try:
        return Study.model_validate(dict(tree))
    except ValidationError as error:
        raise config_error(error) from None
    except TypeError as error:  # a domain that lacks one of its ends
        raise ConfigError(f"this is no study of cvtune ({first_line(error)}). Correct it, or write it anew.") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`path=value` from the command line. The value is JSON where it parses (1e-4, true, null, [..]), else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {short(text)}: write path=value, for example --set optim.lr=0.001.")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):  # the latter of brackets, a thousand deep
        return name.strip(), {"None": None, "True": True, "False": False}.get(value, value)


def for_data(source: str, shows_masks: Callable[[str], bool] = lambda source: False) -> Study:
    """The built-in study for a folder (or other source) of labelled images: both strengths and the learning rate.

    Images with masks get a model that segments. Without `shows_masks` (see `cvtune.data.sources`) only folders and CSV
    manifests are looked at.
    """
    path = Path(source)
    plain = path.resolve().stem if path.exists() else source.removeprefix(TORCHVISION)
    if not path.exists() and source.lower().endswith(ARCHIVES):  # a pattern: the folder's name says more
        plain = path.resolve().parent.name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.") or "study"
    recipe = Recipe().replace(_SEGMENTED if _has_masks(path) or shows_masks(source) else _UNLIKE_PHOTOS.get(source, {}))
    return Study(name=stem, data=Source(source=source), recipe=recipe, space=SWEET_SPOT)


def _has_masks(path: Path) -> bool:
    """Whether a folder or CSV manifest has masks, which its reader will then find."""
    if path.suffix.lower() != ".csv":
        return (path / "images").is_dir() and (path / "masks").is_dir()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return "mask" in (name.strip() for name in next(csv.reader(file), []))
    except (OSError, UnicodeDecodeError, csv.Error):  # whoever reads the images will say what is wrong
        return False


_SEGMENTED: dict[str, Value] = {
    "model.name": "small_unet",
    # Sets with masks have few images and each image thousands of labels: what is scarce is steps, not pixels per step.
    # Of a few hundred images 64 at a time leave so few steps per epoch that a study's epochs end before it learns.
    "data.batch_size": 8,
}
_DRAWN = {"augment.flip": "none"}  # a mirrored digit, letter or traffic sign is another one
_UNLIKE_PHOTOS: dict[str, dict[str, Value]] = {  # sources whose images are smaller, or must not be mirrored
    "digits": {**_DRAWN, "data.image_size": 16},
    "torchvision:USPS": {**_DRAWN, "data.image_size": 16},
    "torchvision:MNIST": {**_DRAWN, "data.image_size": 32},
    "torchvision:KMNIST": {**_DRAWN, "data.image_size": 32},
    "torchvision:SVHN": {**_DRAWN, "data.image_size": 32},
    "torchvision:GTSRB": {**_DRAWN, "data.image_size": 32},
    "torchvision:FashionMNIST": {"data.image_size": 32},
    "torchvision:CIFAR10": {"data.image_size": 32},
    "torchvision:CIFAR100": {"data.image_size": 32},
    "torchvision:EuroSAT": {"data.image_size": 64},
    "torchvision:STL10": {"data.image_size": 96},
}

SWEET_SPOT = space(
    {
        # Short trainings and small images seldom want more; what `cvtune check` says of strengths has the same ends.
        "augment.strength": Uniform(0, 1, likely=(0, 0.6)),
        "regularize.strength": Uniform(0, 1, likely=(0, 0.6)),
        # Of nine rates 0.0045 and 0.012 were best for a small network, see docs/advice.md. Pretrained ones want less.
        "optim.lr": LogUniform(5e-4, 2e-2, likely=(2e-3, 2e-2)),
    }
)


def load(target: str, shows_masks: Callable[[str], bool] = lambda source: False) -> Study:
    """The study that a command-line target names: WORKFLOW.py, STUDY.json, or images (see `for_data`).

    Raises:
        ConfigError: the file is missing, is no study, or the workflow fails while it builds its study.
    """
    path = Path(target)
    if path.suffix == ".py":
        return built(path, "study", Study, "a workflow")
    if path.suffix == ".json":
        return read(path)
    if target == "digits" or target.startswith(TORCHVISION) or path.is_dir() or _is_images(target.lower()):
        return for_data(target, shows_masks)
    raise ConfigError(
        f"{target!r} is neither a workflow (.py), a study (.json), a folder, manifest or archive of images nor "
        "torchvision:NAME. Check the path; `cvtune run workflows/quickstart.py` and `cvtune run digits` always work."
    )


def _is_images(name: str) -> bool:
    """Whether the name is one of a file of images; a compressed tar is refused where it would be read."""
    return name.endswith((".npz", *MANIFESTS, *ARCHIVES, ".tar.gz", ".tgz"))


def read(path: Path) -> Study:
    """The study in a `study.json`."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as a study ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("study"), dict):
        raise ConfigError(f"{path}: no study.json of cvtune (the key 'study' is missing, or no object).")
    form = content.get("format", 0)
    if not isinstance(form, int) or form > FORMAT:
        raise ConfigError(f"{path}: written by a newer cvtune (format {short(form)}, {FORMAT} is read). Update cvtune.")
    return make(content["study"])
