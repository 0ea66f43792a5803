"""Experiments: runs what tests a rule of thumb on the user's images, and judges the rules together.

An experiment lies in `<storage>/<rule>/`: `plan.json`, written before its first trial, the studies that it consists of,
and `evidence.json`. Every study is taken up where it was left, so the same command goes on after any interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cvtune import study as studies
from cvtune.durable import read_json, write_whole
from cvtune.engine import Interrupted, run_study
from cvtune.errors import ConfigError, CvtuneError
from cvtune.history import History
from cvtune.recipe import Value
from cvtune.rule import Rule
from cvtune.screen import Lines
from cvtune.study import Study
from cvtune.verdict import Evidence, Verdict, judge

FORMAT = 1
PLAN, EVIDENCE = "plan.json", "evidence.json"
SAME_IMAGES = "The images come with a split of their own, so all units share it: the interval tells training luck only."
Found = dict[str, dict[str, Value]]  # arm -> the values that its tuning found best
Run = Callable[[Study, Path], tuple[Path, History]]  # trains a study in a storage: its folder and its history
Say = Callable[[str], None]


def advise(rule: Rule, storage: Path, run: Run, say: Say) -> Evidence:
    """Run the experiment of a rule, or what is left of it, and write down what its units say.

    Raises:
        ConfigError: the storage holds an experiment of this name that was planned otherwise.
        CvtuneError: an arm was not tuned or a unit not scored; see `run_study` for the rest.
    """
    folder = storage / rule.name
    _plan(rule, folder)
    if rule.untestable is not None:
        evidence = Evidence(rule.name, rule.says, (), rule.relevant, rule.either, "", rule.untestable)
    else:
        scores, note = _scores(rule, folder, run, say)
        contrasts = np.array(list(rule.contrast.values())) @ np.array([scores[arm] for arm in rule.contrast])
        evidence = Evidence(rule.name, rule.says, tuple(contrasts.tolist()), rule.relevant, rule.either, note)
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
        known = {field.name: tree[field.name] for field in dataclasses.fields(Evidence)}
        found.append(Evidence(**{**known, "contrasts": tuple(known["contrasts"])}))
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

    def event(self, event: dict[str, Any], history: History) -> None:
        if line := self._lines(event, history):
            self._say(line)


def _plan(rule: Rule, folder: Path) -> None:
    """Write down what is planned, unless that was done."""
    told = read_json(folder / PLAN)
    if told is None:
        tree = {"format": FORMAT, "digest": rule.digest, "rule": rule.model_dump(mode="json")}
        write_whole(folder / PLAN, json.dumps(tree, indent=2))
    elif told["digest"] != rule.digest:
        raise ConfigError(
            f"{folder / PLAN}: rule {rule.name!r} was planned otherwise (digest {told['digest'][:12]}, now "
            f"{rule.digest[:12]}). What is compared is fixed before the first trial: go on with the plan as it was, or "
            "use another --storage."
        )


def _scores(rule: Rule, folder: Path, run: Run, say: Say) -> tuple[dict[str, list[float]], str]:
    """Per arm its test score on each unit, and what the images restrict, in words."""
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
    return scores, "" if len(images) > 1 else SAME_IMAGES


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
