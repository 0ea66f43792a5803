"""Experiments: runs what tests a rule of thumb on the user's images, and judges the rules together.

An experiment lies in `<storage>/<rule>/`: `plan.json`, written before its first trial, the studies that it consists of,
and `evidence.json`. Every study is taken up where it was left, so the same command goes on after any interruption.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cvtune import study as studies
from cvtune.data import cache_folder, read_source
from cvtune.data.fingerprint import fingerprint
from cvtune.durable import read_json, write_whole
from cvtune.engine import Interrupted, run_study
from cvtune.errors import ConfigError, CvtuneError
from cvtune.history import History
from cvtune.recipe import Value
from cvtune.rule import Rule
from cvtune.screen import Lines
from cvtune.sections import Source
from cvtune.study import Study
from cvtune.verdict import Arm, Evidence, Verdict, judge

FORMAT = 1
PLAN, EVIDENCE = "plan.json", "evidence.json"
SAME_IMAGES = "The images come with a split of their own, so all units share it: the interval tells training luck only."
Found = dict[str, dict[str, Value]]  # arm -> the values that its tuning found best
Run = Callable[[Study, Path], tuple[Path, History]]  # trains a study in a storage: its folder and its history
Say = Callable[[str], None]


def advise(rule: Rule, storage: Path, run: Run, say: Say, images: str = "") -> Evidence:
    """Run the experiment of a rule, or what is left of it, and write down what its units say.

    Args:
        images: what tells these images from others, see `images_of`; it is written into the plan. "" is not compared.

    Raises:
        ConfigError: the storage holds an experiment of this name that was planned otherwise, or one on other images.
        CvtuneError: an arm was not tuned or a unit not scored; see `run_study` for the rest.
    """
    folder = storage / rule.name
    _refuse_other_data(rule, storage)
    _plan(rule, folder, images)
    if rule.untestable is not None:
        evidence = Evidence(rule.name, rule.says, (), rule.relevant, rule.either, "", rule.untestable)
    else:
        arms, note = _arms(rule, folder, run, say)
        scores = {arm.name: arm.scores for arm in arms}
        contrasts = np.array(list(rule.contrast.values())) @ np.array([scores[arm] for arm in rule.contrast])
        evidence = Evidence(
            rule.name, rule.says, tuple(contrasts.tolist()), rule.relevant, rule.either, note, arms=arms
        )
    told = {"format": FORMAT, "digest": rule.digest, **dataclasses.asdict(evidence)}
    write_whole(folder / EVIDENCE, json.dumps(told, indent=2))
    return evidence


def verdicts(storage: Path) -> list[Verdict]:
    """A verdict on each rule with evidence in a storage folder, judged together.

    Raises:
        ConfigError: there is none.
    """
    found = []
    for path in sorted(storage.glob(f"*/{EVIDENCE}")):
        tree: dict[str, Any] = json.loads(path.read_text())
        known = {field.name: tree[field.name] for field in dataclasses.fields(Evidence) if field.name in tree}
        arms = tuple(Arm(arm["name"], arm["values"], tuple(arm["scores"])) for arm in tree.get("arms", ()))
        found.append(Evidence(**{**known, "contrasts": tuple(known["contrasts"]), "arms": arms}))
    if not found:
        raise ConfigError(
            f"{storage}: no rule was tested here. Run `cvtune advise DATA workflows/advice/RULE.py` first."
        )
    return judge(found)


def through_ray(cache: Path | None, roots: tuple[str, ...], say: Say) -> Run:
    """Trains studies on Ray Tune, with a line for each event, and each notice of the images once."""
    noticed: set[str] = set()

    def notice(line: str) -> None:
        if line not in noticed:
            say(line)
        noticed.add(line)

    def run(study: Study, storage: Path) -> tuple[Path, History]:
        told = _Told(study, say)
        outcome = run_study(study, storage, cache, "auto", roots, told.event, notice, told.settle)
        if outcome.signal is not None:
            raise Interrupted(outcome.signal)
        return outcome.folder, outcome.history

    return run


class _Told:
    """Says each event of a study in a line, once its objective is settled."""

    def __init__(self, study: Study, say: Say) -> None:
        self._lines, self._say = Lines(study), say

    def settle(self, study: Study) -> None:
        self._lines = Lines(study)

    def event(self, event: Mapping[str, Any], history: History) -> None:
        if line := self._lines(event, history):
            self._say(line)


def images_of(source: Source, cache: Path | None) -> str:
    """The fingerprint of a data set's images and labels, as hex; read once, then remembered in the cache.

    Raises:
        DataError: the images cannot be read as a data set.
    """
    folder, workers = cache_folder(cache), os.cpu_count() or 1
    return fingerprint(read_source(source, folder, workers), folder, workers).digest


def _refuse_other_data(rule: Rule, storage: Path) -> None:
    """All rules of a storage folder are judged together, so they are tested on one data set."""
    for path in sorted(storage.glob(f"*/{PLAN}")):
        planned = (read_json(path) or {}).get("rule")  # a study's folder may hold a plan of `cvtune plan`
        source = planned["study"]["data"]["source"] if planned else rule.study.data.source
        if source != rule.study.data.source:
            raise ConfigError(
                f"{storage}: rule {path.parent.name!r} was planned here for the images {source!r}, and now they are "
                f"{rule.study.data.source!r}. A storage folder holds the rules of one data set: name it as then, or "
                "give another --storage."
            )


def _plan(rule: Rule, folder: Path, images: str) -> None:
    """Write down what is planned, unless that was done."""
    told = read_json(folder / PLAN)
    if told is None:
        tree = {"format": FORMAT, "digest": rule.digest, "images": images, "rule": rule.model_dump(mode="json")}
        write_whole(folder / PLAN, json.dumps(tree, indent=2))
    elif told["digest"] != rule.digest:
        raise ConfigError(
            f"{folder / PLAN}: rule {rule.name!r} was planned otherwise (digest {told['digest'][:12]}, now "
            f"{rule.digest[:12]}). What is compared is fixed before the first trial: go on with the plan as it was, or "
            "use another --storage."
        )
    elif images and told.get("images", images) != images:
        raise ConfigError(
            f"{folder / PLAN}: rule {rule.name!r} was begun on other images: those of {rule.study.data.source!r} or "
            "their labels have changed since. Restore what was there, or use another --storage."
        )


def _arms(rule: Rule, folder: Path, run: Run, say: Say) -> tuple[tuple[Arm, ...], str]:
    """The arms with their scores, and what the images restrict, in words."""
    found: Found = {arm: {} for arm in rule.arms}
    for arm in rule.arms:
        if part := rule.tuning(arm):
            say(f"rule {rule.name}: tuning arm {arm}")
            found[arm] = _tuned(*run(part, folder), arm)
    scores: dict[str, list[float]] = {arm: [] for arm in rule.arms}
    images = set()
    for number in range(1, rule.units + 1):
        say(f"rule {rule.name}: unit {number} of {rule.units}")
        unit, _ = run(rule.unit(number, found), folder)
        for arm, score in _compared(unit, rule.arms):
            scores[arm].append(score)
        images.add(json.loads((unit / "study.json").read_text())["provenance"]["data_fingerprint"])
    arms = tuple(Arm(arm, found[arm], tuple(scores[arm])) for arm in rule.arms)
    return arms, "" if len(images) > 1 else SAME_IMAGES


def _tuned(folder: Path, history: History, arm: str) -> dict[str, Value]:
    best = history.best(studies.read(folder / "study.json"))
    if best is None:
        raise CvtuneError(f"{folder}: no trial of arm {arm!r} came through, so it cannot be tuned. See `cvtune logs`.")
    return best[0].values


def _compared(folder: Path, arms: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Each arm's mean test score over its seeds."""
    told = read_json(folder / "best" / "comparison.json")
    means = {entry["label"]: entry["mean"] for entry in told["recipes"]} if told else {}
    for arm in arms:
        if arm not in means:
            raise CvtuneError(f"{folder}: arm {arm!r} has no test score, its trainings failed. See `cvtune logs`.")
        yield arm, float(means[arm])
