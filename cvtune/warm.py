"""Warm start: what an older study measured, as prior observations and first points of a new one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cvtune import history
from cvtune.errors import ConfigError
from cvtune.evidence import RAN_OUT
from cvtune.history import FAILED, TrialRecord
from cvtune.recipe import Recipe, Value
from cvtune.study import Observation, Study, make, read

OWN = ("seed", "max_epochs")  # values of a recipe that differ between trials anyway, or have a notice of their own


def warm_start(study: Study, folder: Path, best: int = 3) -> tuple[Study, list[str]]:
    """The study with an older one's trials as `prior` and its best recipes as first `points`; and notices for a person.

    A trial of the search, a control or a noise trial is comparable if the objective is the same (a study that leaves it
    open takes the older one's) and its recipe has a
    value inside the domain for every name that the new study searches (where its condition holds). What else differs
    between the two studies (images, epochs, base recipe) shifts the scores of all its trials; it is said, not refused.
    A trial that took over another one's weights counts up to there.

    Args:
        folder: the older study's folder.
        best: how many different recipes, the best of those that fit, are tried first; 0: none.

    Raises:
        ConfigError: the folder is no study, its objective is another one, or none of its trials fits.
    """
    if not (folder / "study.json").is_file():
        raise ConfigError(f"warm start: {str(folder)!r} is no study (study.json is missing). Give a study's folder.")
    older = read(folder / "study.json")
    study = study.settled(older.objective)
    if older.objective != study.objective:
        raise ConfigError(
            f"warm start: {older.name!r} compared by {older.objective!r}, this study compares by {study.objective!r}; "
            f"their scores say nothing about each other. Set objective={older.objective}, or start without."
        )
    records = history.load(folder).of("search", "control", "noise")
    judged = [_observation(study, record) for record in records]
    prior = [seen for seen in judged if isinstance(seen, Observation)]
    dropped = Counter(why for why in judged if isinstance(why, str))
    if not prior:
        reasons = "; ".join(f"{n} {why}" for why, n in dropped.most_common()) or "it has none"
        raise ConfigError(f"warm start: no trial of {older.name!r} can be used ({reasons}). Start without it.")
    points = _best(prior, study, best)
    first = f"; its best {len(points)} are tried first" if points else ""
    notices = [f"{len(prior)} of {len(records)} trials of {older.name!r} are learned from{first}"]
    notices += [f"{n} left out: {why}" for why, n in dropped.most_common()]
    own = [point for point in study.points if point not in points]
    tree = {**study.model_dump(), "prior": [*study.prior, *prior], "points": [*points, *own]}
    return make(tree), [*notices, *_differences(study, older)]


def _observation(study: Study, record: TrialRecord) -> Observation | str:
    """What a trial measured, in terms of the new study; or in words why it cannot be used."""
    values = _values(study, record.recipe)
    if isinstance(values, str):
        return values
    if record.reason in FAILED:
        return "failed"
    alone = record.exploits[0].step if record.exploits else record.steps
    epochs = [e for e in record.epochs if e["step"] <= alone]
    best = record.best(study, epochs)
    if best is None:
        return "ended without a score"
    if any(map(study.over_limits, epochs)):
        return "above a limit of this study"
    complete = record.reason in RAN_OUT and not record.exploits
    score = float(study.score(best) or 0)
    return Observation(values=values, score=score, epochs=epochs[-1]["step"], complete=complete)


def _values(study: Study, recipe: Recipe) -> dict[str, Value] | str:
    flat = recipe.flat()
    values = study.space.restrict(flat)
    if values is not None:
        return values
    return f"outside this study's space ({', '.join(study.space.outside(flat))})"


def _best(prior: list[Observation], study: Study, count: int) -> list[dict[str, Value]]:
    sign = 1 if study.better == "max" else -1
    points: list[dict[str, Value]] = []
    for seen in sorted(prior, key=lambda seen: -sign * seen.score):
        if seen.values not in points:
            points.append(dict(seen.values))
    return points[:count]


def _differences(study: Study, older: Study) -> list[str]:
    """What shifts the scores of the two studies against each other, in words."""
    notices = []
    if older.data.source != study.data.source:
        notices.append(f"the images differ: {older.data.source!r} there, {study.data.source!r} here")
    elif older.data != study.data:
        notices.append("the same images are split in another way")
    there, here = older.recipe.flat(), study.recipe.flat()
    if there["max_epochs"] != here["max_epochs"]:
        notices.append(f"max_epochs differs: {there['max_epochs']} there, {here['max_epochs']} here")
    fixed = [name for name in older.space.domains if name not in study.space.domains]
    if fixed:
        notices.append(f"searched there, fixed here: {', '.join(fixed)}")
    others = [n for n in here if n not in OWN and n not in study.space.domains and n not in fixed]
    differ = [f"{n} ({there[n]!r} there, {here[n]!r} here)" for n in others if there[n] != here[n]]
    if differ:
        notices.append(f"the recipes differ: {', '.join(differ)}")
    return notices
