"""Tables: a study's tables as plain columns, which is all that the analysis knows of it. No Parquet, no journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.controls import ControlReport
from cvtune.study import Study

Columns = Mapping[str, npt.NDArray[Any]]  # (rows,) each; numbers as float64 with NaN for null, all else as objects


@dataclass(frozen=True)
class Tables:
    """What `analyse` is given. `results.read_tables` makes it of a study folder; imported runs can be put in as well.

    Attributes:
        study: the definition: objective, space, max_epochs, scheduler.
        trials: at least `trial`, `role`, `label`, `reason`, and a column for each searched name.
        epochs: at least `trial`, `step`, and the objective.
        decisions: `trial`, `step`, `action`; may be empty.
        predictions: `trial`, `label`, `sample`, `target`, `predicted`; may be empty.
        provenance: what `study.json` holds of it, such as `classes` and the versions of the two mappings.
        comparison: `best/comparison.json`, the confirmed recipes on the test images; None before that.
        controls: whether ASHA would have stopped the winner; None where no journal is at hand.
    """

    study: Study
    trials: Columns
    epochs: Columns
    decisions: Columns = field(default_factory=dict)
    predictions: Columns = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] | None = None
    controls: ControlReport | None = None

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of `trials`; all None where an imported table lacks it."""
        return self.trials.get(name, np.full(len(self.trials["trial"]), None, object))
