"""Verdicts: what the contrasts of an experiment say of its rule. Pure functions.

Three claims are tested by t tests over the units (one value each, so that what a unit's arms share cancels): the
contrast is above 0; it is below minus the smallest relevant effect; it lies within plus and minus that effect (two
one-sided tests, Schuirmann 1987). Over the rules that are judged together, the p values of each claim are adjusted by
Holm (1979), so that a long list of rules does not support one by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

ALPHA, POWER = 0.05, 0.8
SUPPORTED, CONTRADICTED, NONE = "supported", "contradicted", "no relevant effect"
UNDECIDED, UNTESTABLE = "undecided", "not testable here"
MOST_UNITS = 10_000
HEAD = (
    "| rule | verdict | effect (95 % interval) | smallest relevant | units | adjusted p | would decide |",
    "|---|---|---|---|---|---|---|",
)
ARMS_HEAD = "| arm | tuned | mean test score | of each unit |", "|---|---|---|---|"


@dataclass(frozen=True)
class Arm:
    """One of the recipes that were compared.

    Attributes:
        values: what its tuning found, dotted name -> value; empty where nothing was tuned.
        scores: its test score on each unit, a mean over the unit's seeds.
    """

    name: str
    values: Mapping[str, str | float | int | bool | None]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """What the units of one rule say.

    Attributes:
        contrasts: one per unit, in units of the test metric.
        relevant: the smallest contrast that would matter.
        either: whether the rule names no direction.
        note: what restricts the evidence, as a sentence; "" where nothing does.
        untestable: why there is none.
        arms: what the contrasts are made of.
    """

    rule: str
    says: str
    contrasts: tuple[float, ...]
    relevant: float
    either: bool = False
    note: str = ""
    untestable: str | None = None
    arms: tuple[Arm, ...] = ()

    @property
    def mean(self) -> float:
        return float(np.mean(self.contrasts))

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 where all contrasts are equal."""
        return float(np.std(self.contrasts, ddof=1)) / math.sqrt(len(self.contrasts))

    def claims(self) -> dict[str, float]:
        """The p value of each claim that the rule admits, not yet adjusted."""
        above, below = self._p(self.mean), self._p(-self.mean)
        within = max(self._p(self.relevant - self.mean), self._p(self.relevant + self.mean))
        if self.either:
            return {SUPPORTED: min(1.0, 2 * min(above, below)), NONE: within}
        return {SUPPORTED: above, CONTRADICTED: self._p(-self.mean - self.relevant), NONE: within}

    def _p(self, distance: float) -> float:
        """Chance of a mean at least so far on its side if it truly were 0."""
        if not self.error:
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(len(self.contrasts) - 1, -distance / self.error))

    def margin(self) -> float:
        """How far the mean lies within the claim that it lies in: beyond 0, or off a smallest relevant effect."""
        beyond = abs(self.mean) if self.either else max(self.mean, -self.mean - self.relevant)
        return max(beyond, self.relevant - abs(self.mean))

    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean contrast."""
        half = float(stdtrit(len(self.contrasts) - 1, 1 - ALPHA / 2)) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Verdict:
    """The judgement of one rule.

    Attributes:
        p: of its claim, adjusted; None where it is open.
        needed: units that would decide, where it is open; None: more than MOST_UNITS.
        near: whether there are enough units to tell an effect that matters from none, but the effect seen lies near a
            limit of what is claimed; then `needed` holds if it truly is as seen.
    """

    evidence: Evidence
    claim: str
    p: float | None
    needed: int | None
    near: bool = False

    def sentence(self) -> str:
        """The verdict with its numbers, for someone who did not run it."""
        told = self.evidence
        if self.claim == UNTESTABLE:
            return f"{UNTESTABLE}: {told.untestable}"
        low, high = told.interval()
        numbers = f"effect {told.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, {len(told.contrasts)} units"
        if self.claim == UNDECIDED:
            tail = f"; {self.more()} would tell an effect of {told.relevant:g} from none with {POWER:.0%} power"
            if self.near:
                tail = f"; it is near the limit of what matters, and if it is as seen {self.more()} would tell"
        else:
            tail = f", adjusted p = {self.p:.2g}"
        return f"{self.claim}: {numbers}{tail}.{' ' if told.note else ''}{told.note}"

    def more(self) -> str:
        """How many units would decide, in words; "" where it is decided or no number would."""
        if self.claim != UNDECIDED:
            return ""
        return f"about {self.needed} units" if self.needed else f"more than {MOST_UNITS} units"


def page(verdicts: Sequence[Verdict]) -> str:
    """All verdicts as Markdown: a table of them, and one of each rule's arms."""
    lines = [*HEAD, *map(_row, verdicts)]
    for verdict in verdicts:
        told = verdict.evidence
        lines += ["", f"`{told.rule}`: {told.says} {verdict.sentence()}"]
        if told.arms:
            lines += ["", *ARMS_HEAD, *map(_arm, told.arms)]
    return "\n".join(lines) + "\n"


def _row(verdict: Verdict) -> str:
    told = verdict.evidence
    if verdict.claim == UNTESTABLE:
        return f"| {told.rule} | {UNTESTABLE} | | | | | |"
    low, high = told.interval()
    p = "" if verdict.p is None else f"{verdict.p:.2g}"
    effect = f"{told.mean:+.4f} ({low:+.4f} to {high:+.4f})"
    units = len(told.contrasts)
    return f"| {told.rule} | {verdict.claim} | {effect} | {told.relevant:g} | {units} | {p} | {verdict.more()} |"


def _arm(arm: Arm) -> str:
    values = ", ".join(
        f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}" for name, value in arm.values.items()
    )
    scores = " ".join(f"{score:.3f}" for score in arm.scores)
    return f"| {arm.name} | {values} | {np.mean(arm.scores):.4f} | {scores} |"


def judge(evidence: Sequence[Evidence]) -> list[Verdict]:
    """A verdict on each rule, adjusted for judging all of them together."""
    tested = [told for told in evidence if told.untestable is None]
    claims = [told.claims() for told in tested]
    adjusted: dict[str, dict[str, float]] = {}
    for claim in (SUPPORTED, CONTRADICTED, NONE):
        mine = {told.rule: ps[claim] for told, ps in zip(tested, claims, strict=True) if claim in ps}
        adjusted[claim] = dict(zip(mine, holm(list(mine.values())), strict=True))
    of = {told.rule: {claim: ps[told.rule] for claim, ps in adjusted.items() if told.rule in ps} for told in evidence}
    return [_verdict(told, of[told.rule], ALPHA / max(1, len(tested))) for told in evidence]


def _verdict(told: Evidence, ps: dict[str, float], strictest: float) -> Verdict:
    if told.untestable is not None:
        return Verdict(told, UNTESTABLE, None, None)
    # An effect that is surely there and surely too small to matter is not relevant, whatever its sign.
    claim = next((name for name in (NONE, CONTRADICTED, SUPPORTED) if ps.get(name, 1.0) <= ALPHA), None)
    if claim is None:
        needed = units_needed(told, told.relevant)
        near = needed is not None and needed <= len(told.contrasts)
        return Verdict(told, UNDECIDED, None, units_needed(told, told.margin(), strictest) if near else needed, near)
    return Verdict(told, claim, ps[claim], None)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values, in the order of `p`."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def units_needed(told: Evidence, effect: float, alpha: float = ALPHA) -> int | None:
    """Units that show an `effect` with 80 % power at level `alpha`, one-sided unless `either`, at the spread seen.

    By the usual approximation n = ((t + z) s / d)^2. None: more than MOST_UNITS.
    """
    spread = told.error * math.sqrt(len(told.contrasts))
    for n in range(2, MOST_UNITS + 1):
        t = float(stdtrit(n - 1, 1 - alpha / (2 if told.either else 1)))
        if math.sqrt(n) * effect >= (t + float(ndtri(POWER))) * spread:
            return n
    return None
