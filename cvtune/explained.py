"""What a scheduler of Ray Tune has to offer beside Ray's hooks, so that the Board can say why it decides as it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune.schedulers import TrialScheduler

from cvtune.recipe import Value
from cvtune.study import Study

Pointer = tuple[str, int]  # a checkpoint: who wrote it, at which step


@dataclass(frozen=True)
class Reason:
    """What a scheduler compared for one trial.

    Attributes:
        arrival: how many trials had come as far before.
    """

    text: str
    action: Literal["stop", "promote"] | None = None
    arrival: int | None = None


class Explained(TrialScheduler):
    """What the Board needs of a scheduler beside Ray's hooks.

    Attributes:
        reasons: trial -> what the last call compared. The Board empties it before each call.
        known: trial -> values on record for what the next call decides; see `Board.report`.
    """

    _metric: Any  # Ray's, which leaves it open
    _metric_op: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reasons: dict[str, Reason] = {}
        self.known: Mapping[str, Mapping[str, Value]] = {}

    def coordinates(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The `config` of a stub trial for searched values."""
        return dict(values)

    def wants_more(self) -> bool:
        """Whether more trials must be added before any goes on."""
        return False

    def waits(self, name: str) -> str:
        """The numbers for which a paused trial has not gone on; "" where there are none."""
        return ""

    def pointers(self) -> Iterator[Pointer]:
        """Checkpoints that a later takeover may ask for."""
        return iter(())


def common(study: Study) -> dict[str, Any]:
    """What every scheduler of Ray is told: it measures time by the age of the weights, and compares the objective."""
    return {"time_attr": "epoch", "metric": study.objective, "mode": study.better}
