"""Words: the findings as sentences that a person can act on, and what must be known before trusting them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cvtune.analysis.findings import Findings, Interaction, Interval, Point, Ridge, Surface, Ties
from cvtune.analysis.tables import Tables

WIDE = 0.5  # share of the area from which a sweet spot says little
BAND = 0.6  # share of its bounding box below which a sweet spot is called a band
HATCHED = 0.25  # share of the sweet spot that may be extrapolated without a warning
DIVERGED = 0.1  # share of trials


def sentences(found: Findings, tables: Tables) -> Iterator[str]:
    """The answer in words, the most important first."""
    yield from (tables.comparison or {}).get("sentences", ())
    if found.ties is not None:
        yield _ties(found.ties, found.objective)
    if found.surface is not None:
        yield _sweet_spot(found.surface, found.objective)
    if found.interaction is not None and found.surface is not None:
        yield _interaction(found.interaction, found.surface)
    if found.ridge is not None and found.surface is not None and found.ridge.slope.excludes_zero:
        yield _ridge(found.ridge, found.surface)
    if found.importances:
        first = found.importances[0]
        names = " with ".join(first.names)
        yield (
            f"What matters most over the searched space is {names}: {_share(first.share)} of the variation of the "
            "expected score."
        )
    if found.third is not None and any(found.third.moves):
        yield _third(found)
    if found.per_class is not None:
        hurt = [f"{c.name} ({c.change.mean:+.1%})" for c in found.per_class.classes if c.hurt]
        if hurt:
            yield f"Against {found.per_class.reference}, the winner's recall is lower for {', '.join(hurt)}."
    if found.ablation is not None:
        yield _ablation(found)
    if found.rungs is not None and found.rungs.whole:
        yield f"Early stopping saved {found.rungs.saved:.0%} of the epochs."


def warnings(found: Findings, tables: Tables) -> Iterator[str]:
    """What a reader must know before trusting the surface, each a sentence."""
    reason = tables.column("reason")
    diverged = float(np.mean([r == "diverged" for r in reason])) if len(reason) else 0.0
    if diverged > DIVERGED:
        yield f"{diverged:.0%} of the trials diverged: narrow the range of the learning rate, or set optim.clip_norm."
    surface = found.surface
    if surface is None:
        return
    if surface.extrapolated[surface.region].mean() > HATCHED:
        yield (
            "Much of the sweet spot is extrapolated: no trial nearby trained to the end. More trials, or a later first "
            "rung (scheduler.grace_epochs), would settle it."
        )
    if border := _borders(surface):
        yield f"The best setting lies at the border of the searched range ({border}): widen it, or accept that end."
    if surface.blank.mean() > WIDE:
        yield "For most settings the learning rate was not covered well enough to name the best one there."


def _sweet_spot(surface: Surface, objective: str) -> str:
    """Where it is, from where to where it reaches, and what is expected there."""
    if surface.region_share > WIDE:
        return (
            f"No sweet spot can be told apart: {surface.region_share:.0%} of the searched area may be within "
            f"{surface.epsilon:.2g} of the best {objective}."
        )
    rows, columns = surface.region.any(1), surface.region.any(0)
    x, y = surface.x.values[columns], surface.y.values[rows]
    is_band = surface.region.mean() < BAND * columns.mean() * rows.mean()
    shape = "is a band that runs" if is_band else "reaches"
    return (
        f"Best guess: {_point(surface, surface.best)}, with the other values at their average.{_profiled(surface)} The "
        f"sweet spot {shape} from {surface.x.name} {x.min():.3g} to {x.max():.3g} and from {surface.y.name} "
        f"{y.min():.3g} to {y.max():.3g}: {surface.region_share:.0%} of the searched area. Any setting outside is "
        f"shown, at 90 %, to be worse than the best guess by more than {surface.epsilon:.2g}."
    )


def _profiled(surface: Surface) -> str:
    if surface.best_profile is None or (not surface.blank.any() and np.allclose(surface.profile, surface.mean)):
        return ""
    return f" With the best learning rate (and other values) for each setting: {_point(surface, surface.best_profile)}."


def _point(surface: Surface, point: Point) -> str:
    score = point.score
    return (
        f"{surface.x.name} {point.x:.3g} and {surface.y.name} {point.y:.3g}, where {score.mean:.3f} is expected of the "
        f"best epoch ({score.low:.3f} to {score.high:.3f})"
    )


def _interaction(found: Interaction, surface: Surface) -> str:
    """Whether one axis changes what is best of the other."""
    x, y = surface.x.name, surface.y.name
    range_ = f"95 % interval {found.effect.low:.2g} to {found.effect.high:.2g} on the logit"
    if not found.shown:
        return f"Whether {x} and {y} depend on each other is not shown ({range_})."
    if found.scale_dependent:
        return f"{x} and {y} depend on each other ({range_}), but in which way depends on the scale of the axes."
    more = "less" if found.effect.mean < 0 else "more"
    return f"The higher {x}, the {more} {y} is of use ({range_})."


def _ridge(ridge: Ridge, surface: Surface) -> str:
    slope, mapping = ridge.slope, f"; mapping {ridge.mapping}" if ridge.mapping else ""
    return (
        f"From one end of {surface.x.name} to the other the best {surface.y.name} moves by {slope.mean:+.2f} of its "
        f"range (90 % interval {slope.low:+.2f} to {slope.high:+.2f}{mapping})."
    )


def _ties(ties: Ties, objective: str) -> str:
    first, *others = ties.tied
    chance = ties.candidates[0].best
    if not others:
        return f"{first} is the best of the recipes compared with a probability of {chance:.0%} ({ties.basis})."
    named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return f"By {objective}, {first} is not shown to be better than {named}: its chance to be best is {chance:.0%}."


def _third(found: Findings) -> str:
    third, surface = found.third, found.surface
    assert third is not None and surface is not None
    parts = []
    for name, best, moves in zip(
        (surface.x.name, surface.y.name), (third.best_x, third.best_y), third.moves, strict=True
    ):
        if moves:
            parts.append(f"the best {name} goes from {best[0].mean:.3g} to {best[-1].mean:.3g}")
    return f"From {third.name} {_shown(third.values[0])} to {_shown(third.values[-1])}, {' and '.join(parts)}."


def _ablation(found: Findings) -> str:
    assert found.ablation is not None
    lost = [(k, k.change.high < 0 if found.mode == "max" else k.change.low > 0) for k in found.ablation.knobs]
    needed = [f"{knob.name} ({knob.change.mean:+.3g})" for knob, is_worse in lost if is_worse]
    if not needed:
        return f"No single knob of {found.ablation.recipe} is shown to be needed: leaving one out changes too little."
    return f"Of {found.ablation.recipe} these knobs are needed: {', '.join(needed)} when left out."


def _borders(surface: Surface) -> str:
    """The axes whose best value is an end; an end at 0, where nothing lies beyond, is no border to widen."""
    named = []
    for axis, value in ((surface.x, surface.best.x), (surface.y, surface.best.y)):
        is_end = value in (axis.values[0], axis.values[-1])
        is_strength = axis.name.endswith(".strength")
        if is_end and not is_strength:
            named.append(f"{axis.name} {value:.3g}")
    return ", ".join(named)


def _share(share: Interval) -> str:
    return f"{share.mean:.0%} ({share.low:.0%} to {share.high:.0%})"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
