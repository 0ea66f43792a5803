"""Schedule: which weights and which values led to a trial, as a lineage, as a recipe to train again, as a file.

Under population-based training (Jaderberg et al. 2017; PB2: Parker-Holder et al. 2020) a trial takes over a donor's
weights, so what trained them is not what the trial itself was given. The lineage walks back from donor to donor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cvtune.durable import read_json
from cvtune.errors import ConfigError, config_error, did_you_mean
from cvtune.history import History, TrialRecord
from cvtune.noise import score
from cvtune.recipe import MUTABLE, Recipe, Value
from cvtune.study import Study

FORMAT = 1  # of schedule.json; a reader accepts its own and every lower number


@dataclass(frozen=True)
class Piece:
    """A stretch of a lineage that one trial trained under one recipe.

    Attributes:
        trial: who trained it.
        first_epoch, last_epoch: age of the weights in epochs at its first and last report, from 1.
        first_step, last_step: these reports in the trial's own count.
        recipe: the recipe in force, before its `changes`.
    """

    trial: str
    first_epoch: int
    last_epoch: int
    first_step: int
    last_step: int
    recipe: Recipe

    def step_of(self, epoch: int) -> int:
        """The trial's report of weights of this age."""
        return self.first_step + epoch - self.first_epoch


def lineage(history: History, trial: str) -> list[Piece]:
    """What trained a trial's last reported weights, the oldest piece first; together the pieces cover epochs 1..age.

    An exploit that no report followed yet is left out, since the weights reported last are still the trial's own.

    Raises:
        ConfigError: there is no such trial.
    """
    record, pieces = _record(history, trial), []
    step = record.steps
    while True:
        # A checkpoint of report `step` was written before an exploit after that same report.
        exploit = next((e for e in reversed(record.exploits) if e.step < step), None)
        start = exploit.step if exploit else 0
        own = [e for e in record.epochs if start < e["step"] <= step]
        if own:
            ends = own[0]["epoch"], own[-1]["epoch"], own[0]["step"], own[-1]["step"]
            pieces.append(Piece(record.trial, *ends, record.recipe_at(step)))
        if exploit is None:
            return pieces[::-1]
        record, step = _record(history, exploit.donor), exploit.donor_step


def as_changes(study: Study, history: History, trial: str) -> Recipe:
    """The recipe that, trained from scratch, applies at every epoch what the trial's lineage applied.

    Epochs that the lineage did not reach take the values of its last piece. A trial without exploits gives its own
    recipe. The seed is always the study's base seed: a replay repeats a schedule, not a draw of random numbers.

    Raises:
        ConfigError: there is no such trial, or the lineage changed a value that cannot change during training.
    """
    record, pieces = _record(history, trial), lineage(history, trial)
    first = pieces[0].recipe if pieces else record.recipe
    if len(pieces) > 1:
        _refuse_fixed(pieces)
        first = first.replace({"changes": _changes(pieces)})
    return first.replace({"seed": study.recipe.seed})


def to_json(study: Study, history: History, trial: str) -> dict[str, Any]:
    """The schedule of a trial as plain JSON: what happened epoch by epoch, and the recipe that repeats it.

    Returns:
        format, study, trial, objective, score (see `noise.score`); `epochs`: one {epoch, trial, step, values} for each
        age of the weights from 1, where trial and step say who reported it and values holds the searched and the
        changed names; `recipe`: see `as_changes`, without what is the default.

    Raises:
        ConfigError: see `as_changes`.
    """
    recipe, pieces = as_changes(study, history, trial), lineage(history, trial)
    searched = [name for piece in pieces for name in history.trials[piece.trial].values]
    names = dict.fromkeys([*searched, *(name for _, values in recipe.changes for name in values)])
    epochs = []
    for piece in pieces:
        for epoch in range(piece.first_epoch, piece.last_epoch + 1):
            flat = piece.recipe.at(epoch - 1).flat()
            values = {name: flat[name] for name in names}
            epochs.append({"epoch": epoch, "trial": piece.trial, "step": piece.step_of(epoch), "values": values})
    return {
        "format": FORMAT,
        "study": study.name,
        "trial": trial,
        "objective": study.objective,
        "score": score(study, history.trials[trial]),
        "epochs": epochs,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
    }


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file that holds what `to_json` gives.

    Raises:
        ConfigError: the file is missing, is no schedule, or was written by a newer cvtune.
    """
    content = read_json(path)
    if content is None or not isinstance(content.get("recipe"), dict) or not isinstance(content.get("format"), int):
        raise ConfigError(
            f"{path}: not readable as a schedule. It must be a JSON object with the keys 'format' and 'recipe', as "
            "cvtune writes it. Check the path."
        )
    if content["format"] > FORMAT:
        raise ConfigError(
            f"{path}: written by a newer cvtune (format {content['format']}, this one reads {FORMAT}). Update cvtune."
        )
    try:
        return Recipe.model_validate(content["recipe"])
    except ValidationError as error:
        raise ConfigError(f"{path}: {config_error(error, 'recipe')}") from None


def _changes(pieces: list[Piece]) -> tuple[tuple[int, dict[str, Value]], ...]:
    """What differs from each epoch (counted from 0) to the next along a lineage."""
    changes: list[tuple[int, dict[str, Value]]] = []
    known = pieces[0].recipe.flat()
    for epoch in range(1, pieces[0].recipe.max_epochs):
        recipe = next((p.recipe for p in pieces if p.last_epoch > epoch), pieces[-1].recipe)
        now = recipe.at(epoch).flat()
        if new := {name: now[name] for name in MUTABLE if now[name] != known[name]}:
            changes.append((epoch, new))
        known = now
    return tuple(changes)


def _refuse_fixed(pieces: list[Piece]) -> None:
    """A value that cannot change during training must be the same in every piece; only the seed need not be."""
    before = pieces[0].recipe.flat()
    for piece in pieces[1:]:
        after = piece.recipe.flat()
        for name in after.keys() - {*MUTABLE, "seed"}:
            if after[name] != before[name]:
                raise ConfigError(
                    f"{name!r} went from {before[name]!r} to {after[name]!r} where trial {piece.trial} took over its "
                    "donor's weights, but it cannot change during training, so this schedule cannot be trained "
                    f"again. Values that can: {', '.join(MUTABLE)}."
                )


def _record(history: History, trial: str) -> TrialRecord:
    if trial not in history.trials:
        raise ConfigError(f"There is no trial {trial!r}. {did_you_mean(trial, history.trials)}")
    return history.trials[trial]
