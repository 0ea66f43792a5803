"""Health in the report: how often each verdict was given, and who was not judged."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from cvtune.health import FEWEST
from cvtune.report.wrong import UNKNOWN, WELL, of_tables


def made(verdicts: list[str], epochs: list[int]) -> Any:
    columns = {
        "trial": np.array([f"{i:05d}" for i in range(len(verdicts))], object),
        "verdicts": np.array(verdicts, object),
        "evidence": np.array([text and f"{text}: so." for text in verdicts], object),
        "epochs": np.array(epochs, float),
    }
    return SimpleNamespace(trials=columns, column=columns.__getitem__)


def test_trials_with_too_few_reports_are_neither_well_nor_ill() -> None:
    tables = made(["", "overfitting", "diverged", "", "overfitting"], [9, 9, 1, FEWEST - 1, FEWEST])
    found = of_tables(tables, [("best", "00000"), ("median", "00001"), ("worst", "00003")])
    assert found is not None
    assert (found.total, found.few, found.well) == (4, 1, 1)
    assert [(count.rule.name, count.trials, count.first) for count in found.counts] == [
        ("overfitting", 2, "00001"),
        ("diverged", 1, "00002"),
    ]
    assert [one.evidence for one in found.judged] == [WELL, "overfitting: so.", UNKNOWN]


def test_tables_of_an_earlier_version_say_nothing() -> None:
    assert of_tables(SimpleNamespace(trials={}), []) is None  # type: ignore[arg-type]
