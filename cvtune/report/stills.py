"""Stills: the main figures as PNG, to paste into a document. By matplotlib, which draws them without a browser."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvtune.analysis.findings import Importance, Ridge, Surface
from cvtune.report.content import Content
from cvtune.report.figures import BLUE, EDGE, VERMILION
from cvtune.report.rows import Rows, ranked

WIDTH, DPI = 6.4, 130  # inches
MAP = "cividis"
CURVES = 300  # drawn at most: the best ones


def draw(content: Content) -> Mapping[str, bytes]:
    """PNG files by name: surface, importance, curves; those that there is something for."""
    study, found = content.tables.study, content.findings
    made: dict[str, bytes] = {}
    if found.surface is not None:
        made["surface"] = _surface(found.surface, found.ridge, study.objective, study.better)
    if found.importances:
        made["importance"] = _importance(found.importances)
    if any(content.rows.curves):
        made["curves"] = _curves(content.rows, study.objective, study.better)
    return made


def _surface(found: Surface, ridge: Ridge | None, objective: str, better: str) -> bytes:
    figure, axes = _figure(5.2)
    colors = MAP if better == "max" else f"{MAP}_r"
    z = np.ma.masked_invalid(found.mean)
    mesh = axes.pcolormesh(found.x.values, found.y.values, z, cmap=colors, shading="nearest")
    figure.colorbar(mesh, ax=axes, label=f"expected {objective} after {found.epochs} epochs")
    grid = (found.x.values, found.y.values)
    if found.extrapolated.any():
        with rc_context({"hatch.color": "#ffffff"}):
            axes.contourf(*grid, found.extrapolated.astype(float), [0.5, 1.5], colors="none", hatches=["xx"])
    if found.region.any() and not found.region.all():
        axes.contour(*grid, found.region.astype(float), [0.5], colors=EDGE, linewidths=2)
    if ridge is not None:
        axes.plot(ridge.x, ridge.y, "--", color=VERMILION, linewidth=2, label="ridge")
    area = 10 + 60 * found.dots.epochs / max(1, found.dots.epochs.max(initial=1))
    dots = axes.scatter(
        found.dots.x, found.dots.y, area, found.dots.score, cmap=colors, edgecolors=EDGE, linewidths=0.8
    )
    dots.set_clim(float(z.min()), float(z.max()))
    axes.plot(
        found.best.x, found.best.y, "*", color=VERMILION, ms=15, mec="white", label="best", clip_on=False, zorder=3
    )
    axes.set(xlabel=found.x.name, ylabel=found.y.name, xscale=_scale(found.x.is_log), yscale=_scale(found.y.is_log))
    axes.set(xlim=(found.x.values[0], found.x.values[-1]), ylim=(found.y.values[0], found.y.values[-1]))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    with rc_context({"hatch.linewidth": 0.5}):
        return png(figure)


def _importance(found: tuple[Importance, ...]) -> bytes:
    shown = sorted(found, key=lambda one: one.share.mean)[-12:]
    figure, axes = _figure(0.9 + 0.32 * len(shown))
    shares = np.array([[one.share.mean, one.share.low, one.share.high] for one in shown]) * 100
    spread = np.maximum(0, [shares[:, 0] - shares[:, 1], shares[:, 2] - shares[:, 0]])
    axes.barh([" x ".join(one.names) for one in shown], shares[:, 0], xerr=spread, color=BLUE, ecolor="#888888")
    axes.set(xlabel="share of the variance of the expected score, %", xlim=(0, None))
    return png(figure)


def _curves(rows: Rows, objective: str, better: str) -> bytes:
    figure, axes = _figure(4.0)
    order = ranked(rows, better, ("search", "control", "noise", "confirm"))[:CURVES]
    for i in reversed(order):
        x = np.minimum(1 + rows.every * np.arange(len(rows.curves[i])), rows.column("epochs")[i])
        y = np.array([np.nan if v is None else v for v in rows.curves[i]])
        best = i == order[0]
        axes.plot(x, y, color=VERMILION if best else BLUE, alpha=1 if best else 0.35, linewidth=2 if best else 1)
    axes.set(xlabel="epoch", ylabel=objective)
    axes.grid(color="#e6e9ec")
    return png(figure)


def new_figure(height: float, rows: int) -> tuple[Figure, list[Axes]]:
    """A figure as wide as all, `height` inches high, with `rows` panels one below the other."""
    figure = Figure((WIDTH, height), dpi=DPI, layout="constrained")
    panels = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _figure(height: float) -> tuple[Figure, Axes]:
    figure, panels = new_figure(height, 1)
    return figure, panels[0]


def _scale(is_log: bool) -> str:
    return "log" if is_log else "linear"


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
