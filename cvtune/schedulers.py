"""Schedulers as frozen descriptions: who is stopped early, by which rule. `tune.py` makes Ray's objects of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cvtune.recipe import Section, field


class FIFO(Section):
    """Every trial runs to its end, in the order of proposal."""

    name: Literal["fifo"] = "fifo"


class ASHA(Section):
    """Asynchronous successive halving (Li et al. 2020, MLSys): at each rung only the best 1/reduction_factor go on."""

    name: Literal["asha"] = "asha"
    grace_epochs: int = field(1, "First rung: no trial is stopped before this many epochs.", unit="epochs", ge=1)
    reduction_factor: float = field(3.0, "One in this many trials passes a rung; also the spacing of rungs.", gt=1)
    brackets: int = field(1, "Brackets with later and later first rungs (1: the most aggressive only).", ge=1, le=10)


Scheduler = Annotated[FIFO | ASHA, Field(discriminator="name")]
