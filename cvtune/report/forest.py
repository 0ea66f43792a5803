"""The forest plot of rules that were tested, as PNG: the effect of each with its interval, and what would matter."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from cvtune.report.figures import BLUE, EDGE, VERMILION
from cvtune.report.stills import new_figure, png
from cvtune.verdict import CONTRADICTED, SUPPORTED, UNTESTABLE, Evidence, Verdict

COLORS = {SUPPORTED: BLUE, CONTRADICTED: VERMILION}  # the others gray; the words say it, too
GRAY, BAND = "#5b6670", "#e3e7eb"
TALL = 0.34  # half the height of a band, in rows


def draw_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    """One row per rule that was tested: mean and 95 % interval, each unit a dot, what is too small to matter a band."""
    tested = [verdict for verdict in verdicts if verdict.claim != UNTESTABLE]
    figure, (axes,) = new_figure(1.0 + 0.72 * len(tested), 1)
    for row, verdict in enumerate(tested):
        _draw(axes, row, verdict.evidence, COLORS.get(verdict.claim, GRAY))
    axes.axvline(0, color=EDGE, linewidth=0.8)
    axes.set_yticks(range(len(tested)), [_left(verdict) for verdict in tested])
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(tested)), [_right(verdict.evidence) for verdict in tested])
    for side in (axes.yaxis, right.yaxis):
        side.set_tick_params(length=0, labelsize=8.5)
    right.spines["right"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(len(tested) - 0.5, -0.5), xlabel="effect on the test score, above 0 where the rule holds")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return png(figure)


def _draw(axes: Axes, row: int, told: Evidence, color: str) -> None:
    label = {} if row else {"band": "too small to matter", "unit": "one unit", "mean": "mean, 95 % interval"}
    low, high = told.interval()
    axes.fill_betweenx([row - TALL, row + TALL], -told.relevant, told.relevant, color=BAND, label=label.get("band"))
    below = [row + 0.6 * TALL] * len(told.contrasts)
    axes.scatter(told.contrasts, below, 16, color=color, alpha=0.45, lw=0, label=label.get("unit"))
    spread = [[told.mean - low], [high - told.mean]]
    axes.errorbar([told.mean], [row], xerr=spread, fmt="D", ms=6, color=color, lw=2, capsize=4, label=label.get("mean"))


def _left(verdict: Verdict) -> str:
    more = verdict.more()
    return f"{verdict.evidence.rule}\n{verdict.claim}" + (f"\n({more} would tell)" if more else "")


def _right(told: Evidence) -> str:
    low, high = told.interval()
    return f"{told.mean:+.3f}\n({low:+.3f} to {high:+.3f})\n{len(told.contrasts)} units"
