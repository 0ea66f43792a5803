"""Figures of a report, pure functions of values: the surface, what mattered, the trials side by side, two curves.

None of them says which ink or paper it is drawn with: the page does, in the dark and in the light.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from cvtune.analysis.findings import Axis, Gap, Importance, Ridge, Surface
from cvtune.recipe import FIELDS
from cvtune.report.rows import Column, Rows

SCALE = "Cividis"  # ordered alike for people with and without color blindness
BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe & Ito's
EDGE = "#17202a"  # of the sweet spot and of trials, which lie where the surface is bright
HATCH = 22  # crosses along each side of the grid at most
BARS = 16  # importances that are shown
CHOICES = 40  # values of a text column that the parallel coordinates name; the rest are "others"


def surface(found: Surface, ridge: Ridge | None, better: str, profile: bool = False, span: Any = None) -> go.Figure:
    """The expected score over two axes, with the trials, the sweet spot and the ridge on it.

    Args:
        found, ridge: of the analysis.
        better: max or min; bright is better.
        profile: whether to draw the best over the other values instead of the average.
        span: lowest and highest score of the colors; None: those of what is drawn.
    """
    z = np.where(found.blank, np.nan, found.profile) if profile else found.mean
    low, high = span or _span(z)
    figure = go.Figure(_heat(found, z, better, low, high, profile))
    figure.add_trace(_hatch(found))
    if not profile:
        figure.add_trace(_outline(found))
        if ridge is not None:
            figure.add_traces(_ridge(ridge))
    figure.add_trace(_dots(found, better, low, high))
    best = found.best_profile if profile else found.best
    if best is not None:
        figure.add_trace(_star(best.x, best.y))
    figure.update_xaxes(_axis(found.x))
    figure.update_yaxes(_axis(found.y))
    return _bare(figure, 470, showlegend=False, margin={"l": 60, "r": 10, "t": 10, "b": 60})


def importance(found: Sequence[Importance]) -> go.Figure:
    """Bars of the share of the score's variance that each value, and each pair, explains."""
    shown = sorted(found, key=lambda one: -one.share.mean)[:BARS][::-1]
    names = [" x ".join(one.names) for one in shown]
    spread = {
        "array": [100 * max(0.0, one.share.high - one.share.mean) for one in shown],
        "arrayminus": [100 * max(0.0, one.share.mean - one.share.low) for one in shown],
        "thickness": 1.2,
        "color": "#888888",
    }
    colors = [BLUE if len(one.names) == 1 else "#56B4E9" for one in shown]
    shares = [100 * one.share.mean for one in shown]
    told = [f"{n}: {s:.0f} %" for n, s in zip(names, shares, strict=True)]
    figure = go.Figure(
        go.Bar(
            x=shares, y=names, orientation="h", error_x=spread, marker={"color": colors}, text=told, textposition="none"
        )
    )
    figure.update_traces(hoverinfo="text")
    figure.update_xaxes(title="share of the variance, %", rangemode="tozero", fixedrange=True)
    figure.update_yaxes(automargin=True, fixedrange=True, showgrid=False)
    return _bare(figure, 90 + 26 * len(shown))


def parallel(rows: Rows, objective: str, better: str) -> tuple[go.Figure, list[int]] | None:
    """Parallel coordinates of the trials that have a score, and the numbers of these trials, in the order drawn.

    A value that a trial does not have is drawn beneath the others, as "none". None where no trial has a score.
    """
    scores = rows.column("best")
    drawn = [i for i, score in enumerate(scores) if score is not None]
    if not drawn:
        return None
    drawn.sort(key=lambda i: scores[i] if better == "max" else -scores[i])  # the best are drawn last, on top
    columns = [*rows.searched, *(c for c in rows.columns if c.name in ("epochs", "best"))]
    dimensions = [_dimension(column, [rows.column(column.name)[i] for i in drawn], objective) for column in columns]
    picked = np.array([scores[i] for i in drawn], float)
    # The color tells the better half apart; most of the worse half is far off and alike.
    worst, best = (np.median(picked), picked.max()) if better == "max" else (picked.min(), np.median(picked))
    line = {"color": picked, "colorscale": SCALE, "cmin": worst, "cmax": best, "reversescale": better == "min"}
    figure = go.Figure(go.Parcoords(line=line, dimensions=dimensions, labelside="top", rangefont={"size": 1}))
    return _bare(figure, 400, margin={"l": 90, "r": 70, "t": 50, "b": 20}), drawn


def excerpt(
    steps: Sequence[float],
    solid: Sequence[Any],
    dashed: Sequence[Any],
    names: tuple[str, str],
    frame: tuple[float, tuple[float, float]],
) -> go.Figure:
    """The curve of one trial on the validation images, and beside it the same on clean training images if known.

    Args:
        frame: last epoch of the axis, lowest and highest score; alike for curves to be compared.
    """
    figure = go.Figure(go.Scatter(x=steps, y=solid, mode="lines+markers", name=names[0], line={"color": BLUE}))
    if any(value is not None for value in dashed):
        line = {"color": VERMILION, "dash": "dot"}
        figure.add_trace(go.Scatter(x=steps, y=dashed, mode="lines+markers", name=names[1], line=line))
    figure.update_traces(marker={"size": 5})
    last, (low, high) = frame
    pad = 0.05 * ((high - low) or 1.0)
    figure.update_xaxes(title={"text": "epoch", "standoff": 4}, range=[0, 1.03 * last], nticks=6)
    figure.update_yaxes(range=[low - pad, high + pad], nticks=6)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return _bare(figure, 250, legend=legend, showlegend=True, margin={"l": 45, "r": 10, "t": 30, "b": 40})


def gap(found: Gap, axes: tuple[str, str]) -> go.Figure:
    """The overfitting gap of the trials over both axes, side by side; area is epochs trained."""
    figure = go.Figure()
    size = _areas(found.epochs)
    for number, (name, x) in enumerate(zip(axes, (found.x, found.y), strict=True)):
        axis = "x" if number == 0 else "x2"
        marker = {"size": size, "color": (BLUE, VERMILION)[number], "opacity": 0.7}
        figure.add_trace(go.Scatter(x=x, y=found.gap, xaxis=axis, mode="markers", marker=marker, name=titled(name)))
    figure.update_layout(
        xaxis={"domain": [0, 0.47], "title": titled(axes[0])},
        xaxis2={"domain": [0.53, 1], "title": titled(axes[1]), "anchor": "y"},
        yaxis={"title": html.escape(found.metric)},
        showlegend=False,
    )
    return _bare(figure, 320)


def titled(name: str) -> str:
    """A dotted name with its unit, as an axis says it."""
    unit = FIELDS[name].unit if name in FIELDS else ""
    return html.escape(f"{name} [{unit}]" if unit else name)


def _heat(found: Surface, z: npt.NDArray[np.float64], better: str, low: float, high: float, profile: bool) -> Any:
    told = "expected %{z:.4g}" if profile else "expected %{z:.4g} (90 %: %{customdata[0]:.4g} to %{customdata[1]:.4g})"
    where = f"{titled(found.x.name)} %{{x:.3g}}<br>{titled(found.y.name)} %{{y:.3g}}"
    return go.Heatmap(
        x=found.x.values,
        y=found.y.values,
        z=z,
        zmin=low,
        zmax=high,
        customdata=np.stack([found.low, found.high], axis=-1),
        colorscale=SCALE,
        reversescale=better == "min",
        zsmooth=False,
        colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": ".4~g"},
        hovertemplate=f"{where}<br>{told}<extra></extra>",
        name="expected score",
    )


def _hatch(found: Surface) -> Any:
    """Small crosses where no trial nearby trained to the end."""
    every = max(1, -(-max(found.extrapolated.shape) // HATCH))
    rows, columns = np.nonzero(found.extrapolated[::every, ::every])
    return go.Scatter(
        x=found.x.values[::every][columns],
        y=found.y.values[::every][rows],
        mode="markers",
        marker={
            "symbol": "x-thin",
            "size": 6,
            "line": {"width": 1, "color": "rgba(255,255,255,0.75)"},
            "color": "#888",
        },
        hoverinfo="skip",
        name="no finished trial nearby",
    )


def _outline(found: Surface) -> Any:
    """The edge of the sweet spot."""
    z = found.region.astype(float)
    return go.Contour(
        x=found.x.values,
        y=found.y.values,
        z=z,
        contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        line={"color": EDGE, "width": 2.5},
        showscale=False,
        hoverinfo="skip",
        name="sweet spot (90 %)",
    )


def _ridge(ridge: Ridge) -> list[Any]:
    x = np.concatenate([ridge.x, ridge.x[::-1]])
    y = np.concatenate([ridge.high, ridge.low[::-1]])
    band = {"fill": "toself", "fillcolor": "rgba(213,94,0,0.13)", "line": {"width": 0}, "hoverinfo": "skip"}
    line = {"color": VERMILION, "width": 2.5, "dash": "dash"}
    return [
        go.Scatter(x=x, y=y, mode="lines", **band),
        go.Scatter(x=ridge.x, y=ridge.y, mode="lines", line=line, hoverinfo="skip", name="ridge: best y for each x"),
    ]


def _dots(found: Surface, better: str, low: float, high: float) -> Any:
    dots = found.dots
    told = [
        f"trial {html.escape(name)} ({role}): {score:.4g} after {epochs:.0f} epochs"
        for name, role, score, epochs in zip(dots.trial, dots.role, dots.score, dots.epochs, strict=True)
    ]
    marker = {
        "size": _areas(dots.epochs),
        "color": dots.score,
        "colorscale": SCALE,
        "reversescale": better == "min",
        "cmin": low,
        "cmax": high,
        "line": {"width": 1.2, "color": EDGE},
    }
    name = "trial (area: epochs trained)"
    return go.Scatter(x=dots.x, y=dots.y, mode="markers", marker=marker, text=told, hoverinfo="text", name=name)


def _star(x: float, y: float) -> Any:
    marker = {"symbol": "star", "size": 17, "color": VERMILION, "line": {"width": 1.5, "color": "#ffffff"}}
    return go.Scatter(x=[x], y=[y], mode="markers", marker=marker, name="best expected", hoverinfo="x+y")


def _areas(epochs: npt.NDArray[Any]) -> list[float]:
    most = max(1.0, float(np.max(epochs, initial=1)))
    return [5 + 9 * math.sqrt(float(e) / most) for e in epochs]


def _axis(axis: Axis) -> dict[str, Any]:
    low, high = float(axis.values[0]), float(axis.values[-1])
    ends = [math.log10(low), math.log10(high)] if axis.is_log else [low, high]
    pad = 0.02 * (ends[1] - ends[0])
    span = {"range": [ends[0] - pad, ends[1] + pad], "type": "log" if axis.is_log else "linear"}
    return {"title": {"text": titled(axis.name), "standoff": 8}, "showgrid": False, "zeroline": False, **span}


def _span(z: npt.NDArray[np.float64]) -> tuple[float, float]:
    known = z[np.isfinite(z)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _dimension(column: Column, values: Sequence[Any], objective: str) -> dict[str, Any]:
    """One axis of the parallel coordinates: log values by their exponent, words by their number."""
    label = html.escape(objective if column.name == "best" else column.name)
    known = [v for v in values if v is not None]
    if column.form == "text" or not known:
        words = list(dict.fromkeys(str(v) for v in known))[:CHOICES]
        named = [*words, "others"] if len(set(map(str, known))) > CHOICES else words
        at = {word: place for place, word in enumerate(named)}
        numbers = [math.nan if v is None else at.get(str(v), len(words)) for v in values]
        ticks = {float(place): html.escape(word) for word, place in at.items()}
    else:
        log = column.log and min(known) > 0
        numbers = [math.nan if v is None else math.log10(v) if log else float(v) for v in values]
        ticks = _decades(min(known), max(known)) if log else {}
    numbers, ticks = _beneath(numbers, ticks)
    marks = {"tickvals": list(ticks), "ticktext": list(ticks.values())} if ticks else {"tickformat": ".4~g"}
    return {"label": label, "values": numbers, **marks}


def _decades(low: float, high: float) -> dict[float, str]:
    """Marks at 1, 2 and 5 times a power of ten, and at both ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(powers) > 4
    round_ones = [m * 10.0**p for p in powers for m in ((1,) if few else (1, 2, 5)) if low <= m * 10.0**p <= high]
    return {math.log10(v): f"{v:.3g}" for v in round_ones or (low, high)}


def _beneath(numbers: list[float], ticks: dict[float, str]) -> tuple[list[float], dict[float, str]]:
    """What is not a number is put below the others and called "none"."""
    if not any(map(math.isnan, numbers)):
        return numbers, ticks
    known = [n for n in numbers if not math.isnan(n)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    floor = low - 0.12 * ((high - low) or 1.0)
    ticks = ticks or {v: f"{v:.4g}" for v in np.linspace(low, high, 5).tolist()}
    return [floor if math.isnan(n) else n for n in numbers], {floor: "none", **ticks}


def _bare(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Without a template: the page brings ink and paper."""
    margin = {"l": 60, "r": 20, "t": 20, "b": 50}
    return figure.update_layout(template="none", height=height, **{"margin": margin, **layout})
