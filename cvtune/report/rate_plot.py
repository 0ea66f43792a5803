"""The plot of a learning-rate range test, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cvtune.report.figures import BLUE, VERMILION
from cvtune.report.stills import new_figure, png


def draw_rates(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    ranges: Mapping[str, tuple[float, float] | None],
) -> bytes:
    """One panel per optimizer: the loss of each batch, smoothed, and the suggested range.

    Args:
        curves: optimizer -> rates, losses, smoothed losses.
        ranges: optimizer -> lowest and highest rate of its suggestion, where it has one.
    """
    figure, panels = new_figure(2.6 * len(curves) + 0.6, len(curves))
    for axes, (name, (rates, losses, smoothed)) in zip(panels, curves.items(), strict=True):
        axes.plot(rates, losses, color=BLUE, alpha=0.3, linewidth=1, label="loss of the batch")
        axes.plot(rates, smoothed, color=BLUE, linewidth=2, label="smoothed")
        if (span := ranges[name]) is not None:
            axes.axvspan(*span, color=VERMILION, alpha=0.18, label="suggested range")
        finite = [value for value in smoothed if value < float("inf")]
        axes.set(xscale="log", ylabel="training loss", xlabel=f"learning rate ({name})")
        axes.set_ylim(0.9 * min(finite), min(max(finite), 1.6 * finite[0]))
        axes.legend(frameon=False, loc="upper left")
        axes.grid(color="#e6e9ec")
    return png(figure)
