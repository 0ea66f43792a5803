"""From tables to a decision: pure functions, no torch, no Ray. Method and calibration: cvtune/docs/analysis.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from cvtune.analysis import response as responses
from cvtune.analysis.design import Design, design_of
from cvtune.analysis.effects import importances, third_of
from cvtune.analysis.findings import Findings, Unsaid
from cvtune.analysis.recipes import ablation_of, per_class, ties_of
from cvtune.analysis.response import FEWEST, Response
from cvtune.analysis.surface import interaction_of, map_of, ridge_of, surface_of
from cvtune.analysis.tables import Tables
from cvtune.analysis.training import costs_of, gap_of, rungs_of
from cvtune.analysis.words import sentences, warnings
from cvtune.schedulers import PB2, PBT
from cvtune.space import Choice, PerChoice

AXES = ("augment.strength", "regularize.strength")
MOST_NAMES = 40  # searched names up to which the response is fitted

T = TypeVar("T")


def analyse(tables: Tables, axes: tuple[str, str] = AXES) -> Findings:
    """What a study says about two of its axes, and how sure that is. The same tables give the same findings.

    Args:
        tables: see `results.read_tables`.
        axes: two different searched names with a range. Where they are not, the parts that need them are None.
    """
    study, missing = tables.study, dict[str, str]()

    def said(names: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Unsaid as reason:
            missing.update(dict.fromkeys(names.split(), str(reason)))
            return None

    design = design_of(tables)
    places = said("surface ridge interaction gap third", lambda: _places(tables, axes))
    response = said("surface ridge interaction importances third", lambda: _response(design, places, tables))
    found = map_of(response, places) if response is not None and places is not None else None
    parts = Findings(
        study=study.name,
        objective=study.objective,
        mode=study.better,
        surface=surface_of(found, study.space, epsilon(design), study.recipe.max_epochs) if found else None,
        ridge=ridge_of(found, study.space, tables.provenance) if found else None,
        interaction=interaction_of(found) if found else None,
        importances=importances(response) if response is not None else None,
        ties=said("ties", lambda: ties_of(tables, response)),
        per_class=said("per_class", lambda: per_class(tables)),
        ablation=said("ablation", lambda: ablation_of(tables)),
        gap=said("gap", lambda: gap_of(tables, design, places)) if places is not None else None,
        rungs=said("rungs", lambda: rungs_of(tables)),
        third=said("third", lambda: third_of(response, study.space)) if found and response is not None else None,
        costs=said("costs", lambda: costs_of(tables)),
        missing=missing,
        warnings=(),
        sentences=(),
    )
    return dataclasses.replace(
        parts, warnings=tuple(warnings(parts, tables)), sentences=tuple(sentences(parts, tables))
    )


def epsilon(design: Design) -> float | None:
    """What counts as equally good: the noise floor of the noise trials, in units of the objective; None: not known."""
    scores = design.score[np.array([role == "noise" for role in design.roles], bool) & design.whole]
    return float(np.std(scores, ddof=1)) or None if len(scores) > 1 else None


def _places(tables: Tables, axes: tuple[str, str]) -> tuple[int, int]:
    """The positions of both axes among the searched names."""
    domains = tables.study.space.domains
    for name in axes:
        if name not in domains:
            raise Unsaid(f"{name} was not searched; searched were {', '.join(domains) or 'no names'}")
        if isinstance(domains[name], Choice | PerChoice):
            raise Unsaid(f"{name} has no single range, so it cannot be an axis")
    if axes[0] == axes[1]:
        raise Unsaid(f"{axes[0]} is both axes: a surface needs two")
    names = list(domains)
    return names.index(axes[0]), names.index(axes[1])


def _response(design: Design, places: tuple[int, int] | None, tables: Tables) -> Response:
    count, whole, names = len(design.trials), int(design.whole.sum()), len(design.names)
    if not names:
        raise Unsaid("nothing was searched")
    if names > MOST_NAMES:
        raise Unsaid(f"{names} names were searched; effects can be told apart of at most {MOST_NAMES}")
    if count < FEWEST and isinstance(tables.study.scheduler, PBT | PB2):
        raise Unsaid("values changed while the trials trained, so scores belong to schedules: see schedule.html")
    if count < FEWEST:
        raise Unsaid(f"{count} trials with a score and one recipe throughout: it takes at least {FEWEST}")
    if not whole:
        raise Unsaid("no trial trained to max_epochs, so no final score is known")
    if len(np.unique(design.place, axis=0)) < FEWEST:
        raise Unsaid(f"fewer than {FEWEST} different settings were tried")
    return responses.fit(design, places, tables.study.recipe.seed)
