"""From tables to a decision: pure functions, no torch, no Ray. Method and calibration: cvtune/docs/analysis.md."""

from __future__ import annotations

from cvtune.analysis.findings import Findings
from cvtune.analysis.tables import Tables

AXES = ("augment.strength", "regularize.strength")


def analyse(tables: Tables, axes: tuple[str, str] = AXES) -> Findings:
    """What a study says about two of its axes, and how sure that is.

    Args:
        tables: see `results.read_tables`.
        axes: two different searched names with a range.

    Raises:
        ConfigError: an axis is not searched or has no order.
    """
    names = ["surface", "ridge", "interaction", "importances", "ties", "per_class"]
    names += ["ablation", "gap", "rungs", "third", "costs"]
    study = tables.study
    return Findings(
        study=study.name,
        objective=study.objective,
        mode=study.better,
        surface=None,
        ridge=None,
        interaction=None,
        importances=None,
        ties=None,
        per_class=None,
        ablation=None,
        gap=None,
        rungs=None,
        third=None,
        costs=None,
        missing=dict.fromkeys(names, "not computed yet"),
        warnings=(),
        sentences=(),
    )
