"""Lineages of population-based training: what they say must be what the weights went through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvtune.durable import write_whole
from cvtune.errors import ConfigError
from cvtune.history import History
from cvtune.recipe import MUTABLE, Recipe, Value
from cvtune.schedule import as_changes, lineage, read_recipe, to_json
from cvtune.space import LogUniform, Uniform, space
from cvtune.study import Study

SPACE = space(
    {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1e-2)}
)
STUDY = Study(name="pop", objective="val_accuracy", recipe=Recipe(max_epochs=24, seed=7), space=SPACE)


def proposed(study: Study, history: History, values: dict[str, Value]) -> str:
    index = len(history.trials)
    event = {"trial": f"{index:05d}", "index": index, "role": "search", "label": "", "values": values}
    recipe = study.trial(index, values).model_dump(mode="json", exclude_defaults=True)
    history.apply({"kind": "trial", "t": 0.0, "waiting": True, "recipe": recipe, **event})
    return str(event["trial"])


def reported(history: History, trial: str, epoch: int, acts: list[dict[str, Any]] | None = None) -> None:
    step = history.trials[trial].steps + 1
    event = {"trial": trial, "step": step, "epoch": epoch, "val_accuracy": 0.5 + step / 100, "seconds": 1.0}
    history.apply({"kind": "epoch", "t": 1.0, "answer": "go", "acts": acts or [], "reason": None, **event})


def exploit(trial: str, donor: str, donor_step: int, values: dict[str, Value]) -> dict[str, Any]:
    return {"act": "exploit", "trial": trial, "donor": donor, "donor_step": donor_step, "values": values, "why": "low"}


class Population:
    """Trials that train by turns and take over one another's weights; a weight is the list of what trained it."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study, self.rng, self.history = study, np.random.default_rng(seed), History()
        self.weights: dict[str, list[tuple[str, int, Recipe]]] = {}
        self.saved: dict[tuple[str, int], list[tuple[str, int, Recipe]]] = {}
        self.now: dict[str, Recipe] = {}
        for _ in range(5):
            values = study.space.sample(self.rng)
            trial = proposed(study, self.history, values)
            self.weights[trial], self.now[trial] = [], self.history.trials[trial].recipe

    def turn(self) -> None:
        trial = str(self.rng.choice(list(self.weights)))
        weights = self.weights[trial]
        if len(weights) >= self.study.recipe.max_epochs:
            return
        step = self.history.trials[trial].steps + 1
        weights = [*weights, (trial, step, self.now[trial].at(len(weights)))]
        self.weights[trial] = self.saved[trial, step] = weights
        acts = []
        donors = [pointer for pointer in self.saved if pointer[0] != trial]
        if donors and self.rng.random() < 0.3:
            donor, donor_step = donors[int(self.rng.integers(len(donors)))]
            values = self.study.space.sample(self.rng)
            acts = [exploit(trial, donor, donor_step, values)]
            self.weights[trial] = self.saved[donor, donor_step]
            self.now[trial] = self.history.trials[trial].recipe.replace(values)
        reported(self.history, trial, len(weights), acts)


@pytest.mark.parametrize("seed", range(25))
def test_replay_applies_at_every_epoch_what_the_lineage_applied(seed: int) -> None:
    base = STUDY.recipe.replace({"changes": ((3, {"augment.mixup": 0.2}), (9, {"augment.mixup": 0.4}))})
    population = Population(STUDY.model_copy(update={"recipe": base}) if seed % 2 else STUDY, seed)
    for _ in range(110):
        population.turn()
    exploited = 0
    for trial, record in population.history.trials.items():
        truth = population.saved[trial, record.steps]
        exploited += any(piece.trial != trial for piece in lineage(population.history, trial))
        told = [
            (piece.trial, piece.step_of(epoch), epoch)
            for piece in lineage(population.history, trial)
            for epoch in range(piece.first_epoch, piece.last_epoch + 1)
        ]
        assert told == [(who, step, epoch) for epoch, (who, step, _) in enumerate(truth, 1)]
        replay = as_changes(population.study, population.history, trial)
        assert replay.seed == population.study.recipe.seed
        for epoch, (_, _, recipe) in enumerate(truth):
            now, then = replay.at(epoch).flat(), recipe.flat()
            assert {n: now[n] for n in MUTABLE} == {n: then[n] for n in MUTABLE}, (trial, epoch)
        assert replay.at(23).flat()["augment.mixup"] == (0.4 if seed % 2 else 0.0)  # beyond the lineage too
    assert exploited


def test_trial_without_exploits_gives_its_own_recipe_with_the_base_seed() -> None:
    history = History()
    trial = proposed(STUDY, history, {"augment.strength": 0.7})
    reported(history, trial, 1)
    assert as_changes(STUDY, history, trial) == STUDY.recipe.replace({"augment.strength": 0.7})
    assert history.trials[trial].recipe.seed != STUDY.recipe.seed


def chain() -> tuple[History, str]:
    """00001 takes over 00000 after its 2nd report, from step 3; a second exploit is not carried out yet."""
    history = History()
    donor, trial = (proposed(STUDY, history, {"augment.strength": v, "optim.lr": 1e-3}) for v in (0.1, 0.9))
    for epoch in (1, 2, 3):
        reported(history, donor, epoch)
    reported(history, trial, 1)
    reported(history, trial, 2, [exploit(trial, donor, 3, {"augment.strength": 0.25, "optim.lr": 1e-3})])
    reported(history, trial, 4)
    reported(history, trial, 5, [exploit(trial, donor, 1, {"augment.strength": 0.5, "optim.lr": 1e-3})])
    return history, trial


def test_pieces_and_the_pending_exploit() -> None:
    history, trial = chain()
    first, last = lineage(history, trial)
    assert (first.trial, first.first_epoch, first.last_epoch, first.first_step) == ("00000", 1, 3, 1)
    assert (last.trial, last.first_epoch, last.last_epoch, last.first_step) == ("00001", 4, 5, 3)
    assert as_changes(STUDY, history, trial).changes == ((3, {"augment.strength": 0.25}),)


def test_file_goes_round(tmp_path: Path) -> None:
    history, trial = chain()
    content = to_json(STUDY, history, trial)
    write_whole(tmp_path / "schedule.json", json.dumps(content))
    assert read_recipe(tmp_path / "schedule.json") == as_changes(STUDY, history, trial)
    assert (content["study"], content["trial"], content["objective"], content["score"]) == (
        "pop",
        trial,
        "val_accuracy",
        pytest.approx(0.54),
    )
    assert content["epochs"][2] == {
        "epoch": 3,
        "trial": "00000",
        "step": 3,
        "values": {"augment.strength": 0.1, "optim.lr": 1e-3},
    }
    assert [entry["values"]["augment.strength"] for entry in content["epochs"]] == [0.1, 0.1, 0.1, 0.25, 0.25]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable"),
        ("[1]", "not readable"),
        ('{"format": 1}', "not readable"),
        ('{"format": 99, "recipe": {}}', "newer cvtune"),
        ('{"format": 1, "recipe": {"max_epochs": 0}}', "recipe.max_epochs"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "schedule.json").write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        read_recipe(tmp_path / "schedule.json")
    assert "schedule.json" in str(error.value)
    with pytest.raises(ConfigError, match=r"none\.json"):
        read_recipe(tmp_path / "none.json")


def test_unknown_trials_and_fixed_values_are_told() -> None:
    with pytest.raises(ConfigError, match="'00009'"):
        lineage(chain()[0], "00009")
    history = History()
    donor, trial = (proposed(STUDY, history, {"model.width": width}) for width in (16, 32))
    reported(history, donor, 1)
    reported(history, trial, 1, [exploit(trial, donor, 1, {"model.width": 32})])
    reported(history, trial, 2)
    with pytest.raises(ConfigError, match=r"'model.width' went from 16 to 32"):
        as_changes(STUDY, history, trial)
