"""Rule: a rule of thumb about tuning as a designed experiment, all of it fixed before its first trial.

The experiment has arms: recipes that differ in what the rule speaks of. In every arm what has to be tuned anew for a
fair comparison (the learning rate, as a rule) is tuned on one split of the images. Then every arm is trained on fresh
units, each with a split and seeds of its own, and scored on the unit's test images. A contrast, a weighted sum over the
arms, says per unit how far the rule holds; `verdict.py` judges the contrasts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import field_validator, model_validator

from cvtune.errors import ConfigError, did_you_mean
from cvtune.fields import Section, field
from cvtune.recipe import Recipe, Value
from cvtune.sections import Confirm
from cvtune.space import Space
from cvtune.study import Study

MOST_ARM_NAME = 24  # characters: it becomes part of a study's name


class Rule(Section):
    """What is claimed, what is compared, and what it costs.

    Attributes:
        says: the rule in one sentence.
        study: what all arms have in common; its budget, scheduler and searcher tune an arm.
        arms: name -> values of the recipe that make the arm. Empty: see `untestable`.
        contrast: name of an arm -> its weight. The weights add up to 0; the sum over the arms' scores is above 0 where
            the rule holds.
        tuned: name of an arm -> what is tuned in it. An arm that is not named is trained as it is.
        untestable: why one set of images cannot test the rule; such a rule has no arms.
    """

    name: str = field(..., "Name of the experiment: letters, digits, '_' and '-'; a folder below the storage.")
    says: str
    study: Study = Study()
    arms: dict[str, dict[str, Value]] = {}
    contrast: dict[str, float] = {}
    tuned: dict[str, Space] = {}
    relevant: float = field(
        0.02, "Smallest contrast that would matter, in units of the test metric (its absolute value).", gt=0
    )
    either: bool = field(False, "Whether the rule claims a difference without saying in which direction.")
    units: int = field(5, "Fresh splits, each with seeds of its own, on which the arms are compared.", ge=2, le=1000)
    seeds: int = field(2, "Trainings of each arm in a unit, whose scores are averaged.", ge=2, le=100)
    untestable: str | None = None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,49}", value):
            raise ConfigError(f"name = {value!r}: begin with a letter; use letters, digits, '_' and '-', at most 50.")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.arms) == (self.untestable is not None):
            raise ConfigError(f"rule {self.name!r}: give arms that test it, or say in `untestable` why none can.")
        for arm in self.arms:
            if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_-]{{0,{MOST_ARM_NAME - 1}}}", arm):
                raise ConfigError(
                    f"arms: {arm!r}: begin with a letter; use letters, digits, '_' and '-', at most {MOST_ARM_NAME}."
                )
        for what, names in (("contrast", self.contrast), ("tuned", self.tuned)):
            for name in names:
                if name not in self.arms:
                    raise ConfigError(f"{what}: {name!r} is no arm. {did_you_mean(name, self.arms)}")
        if self.arms and (abs(sum(self.contrast.values())) > 1e-9 or not any(self.contrast.values())):
            raise ConfigError(f"contrast = {self.contrast}: the weights must add up to 0 and not all be 0.")
        for arm in self.arms:  # what cannot be built is said before anything is trained
            self.tuning(arm)
        if self.arms:
            self.unit(1, {arm: {} for arm in self.arms})
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything fixed beforehand but the images, whose place and content are compared apart."""
        tree = self.model_dump(mode="json")
        tree["study"] = self.study.definition()
        tree["study"]["data"].pop("source")
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    def recipe(self, arm: str, found: Mapping[str, Value]) -> Recipe:
        """The recipe of an arm with the values `found` for it."""
        return self.study.recipe.replace({**self.arms[arm], **found})

    def tuning(self, arm: str) -> Study | None:
        """The study that tunes an arm, by validation images; None: there is nothing to tune."""
        if arm not in self.tuned:
            return None
        return self._part(
            f"tune-{arm}",
            {"recipe": self.recipe(arm, {}), "space": self.tuned[arm], "points": (), "confirm": Confirm(top=0)},
        )

    def unit(self, number: int, found: Mapping[str, Mapping[str, Value]]) -> Study:
        """The study that trains every arm on unit `number`, counted from 1; on split 0 the arms were tuned."""
        source, budget = self.study.data, self.study.budget
        return self._part(
            f"unit-{number:03d}",
            {
                "data": source.model_copy(update={"split_seed": source.split_seed + number}),
                "recipe": self.study.recipe.replace({"seed": self.study.recipe.seed + number}),
                "space": Space(),
                "points": (),
                "candidates": {arm: self.recipe(arm, found[arm]) for arm in self.arms},
                "budget": budget.model_copy(update={"trials": 0}),
                "confirm": Confirm(top=0, seeds=self.seeds, baselines=False),
            },
        )

    def _part(self, name: str, changes: Mapping[str, Any]) -> Study:
        """A study of the experiment; its name carries the plan's digest into its journal."""
        common = {"name": f"{name}-{self.digest[:8]}", "noise_seeds": 0}
        return Study.model_validate({**self.study.model_dump(), **common, **changes})
