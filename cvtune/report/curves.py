"""Curves: the schedule that population-based training found, as a picture to look at and to hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cvtune.durable import write_whole
from cvtune.recipe import FIELDS

# Okabe & Ito: eight colors that people with color blindness can tell apart as well (the yellow of theirs is too pale).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
DASHES = ("solid", "dot", "dash")  # where trials outnumber colors
COLUMNS, PANEL, EDGE = 2, 210, 130  # panels side by side, height of one and of what is around them in px
INK, GRID, JUMP = "#222222", "#e6e6e6", "#bbbbbb"


def schedule_figure(schedule: Mapping[str, Any]) -> go.Figure:
    """One panel for each value, over the epochs of a winner's lineage.

    A value is drawn as the step that it is; its color says which trial the weights come from. An axis is logarithmic
    where the values span more than a factor of 10, but never for a share or strength in [0, 1]. Values that are not set
    leave a gap.

    Args:
        schedule: what `schedule.to_json` gives.
    """
    epochs = schedule["epochs"]
    names = list(dict.fromkeys(name for entry in epochs for name in entry["values"]))
    trials = list(dict.fromkeys(entry["trial"] for entry in epochs))
    columns = min(COLUMNS, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = make_subplots(rows, columns, subplot_titles=[_titled(n) for n in names], vertical_spacing=0.3 / rows)
    for place, name in enumerate(names):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        values = [entry["values"].get(name) for entry in epochs]
        _draw(figure, at, epochs, values, trials, is_first=place == 0)
        figure.update_yaxes(type=_axis(name, values), tickformat="~g", **at)
        if place + columns >= len(names):
            figure.update_xaxes(title={"text": "epoch", "standoff": 6}, **at)
    if not names:
        figure.add_annotation(text="Nothing was searched, and nothing changed.", showarrow=False)
        figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return _styled(figure, _heading(schedule, trials), rows)


def points_figure(points: Sequence[tuple[Any, ...]], axes: tuple[str, str], objective: str) -> go.Figure:
    """Trials over two axes: what was measured, nothing fitted. Color is the best score, area the epochs trained.

    Args:
        points: position on each axis, best score, epochs, name of the trial.
        axes: dotted names.
        objective: name of the score.
    """
    x, y, scores, epochs, names = zip(*points, strict=True)
    most = max(epochs)
    told = [f"{n}: {s:.4g} after {e} epochs" for n, s, e in zip(names, scores, epochs, strict=True)]
    marker = {
        "color": scores,
        "colorscale": "Cividis",  # ordered for people with color blindness, too
        "colorbar": {"title": objective},
        "size": [6 + 14 * (e / most) ** 0.5 for e in epochs],
        "line": {"width": 1, "color": INK},
    }
    figure = go.Figure(go.Scatter(x=x, y=y, mode="markers", text=told, hoverinfo="text+x+y", marker=marker))
    figure.update_layout(
        title=f"{objective} of {len(points)} trials (area: epochs trained)", plot_bgcolor="white", height=520
    )
    figure.update_xaxes(title=_titled(axes[0]), gridcolor=GRID, zeroline=False)
    figure.update_yaxes(title=_titled(axes[1]), gridcolor=GRID, zeroline=False)
    return figure


def figure_of(content: Mapping[str, Any]) -> go.Figure:
    """A figure from its own JSON, such as `report/surface.json`."""
    return go.Figure(content)


def write_html(figure: go.Figure, path: Path) -> None:
    """Write a figure as one file that needs nothing else, not even a network (about 5 MB).

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    write_whole(path, figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False}))


def _draw(
    figure: go.Figure,
    at: Mapping[str, int],
    epochs: Sequence[Mapping[str, Any]],
    values: Sequence[Any],
    trials: Sequence[str],
    is_first: bool,
) -> None:
    """The steps of one value: thin jumps in gray, and over them each trial's stretches in its color."""
    x = [edge for entry in epochs for edge in (entry["epoch"] - 0.5, entry["epoch"] + 0.5)]
    y = [value for value in values for _ in range(2)]
    thin = {"color": JUMP, "width": 1}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=thin, hoverinfo="skip", showlegend=False), **at)
    named: set[str] = set()
    for trial, stretch in groupby(zip(epochs, values, strict=True), key=lambda pair: pair[0]["trial"]):
        x, y = [], []
        told: list[str] = []
        for entry, value in stretch:
            epoch = entry["epoch"]
            if y and y[-1] != value:  # a line is broken where it jumps, and only there: each break shows
                x, y, told = [*x, None], [*y, None], [*told, ""]
            x += [epoch - 0.5, epoch, epoch + 0.5]
            y += [value] * 3
            told += [f"epoch {epoch}: {_shown(value)}<br>trial {trial}, its report {entry['step']}"] * 3
        number = trials.index(trial)
        line = {"color": COLORS[number % len(COLORS)], "dash": DASHES[number // len(COLORS) % len(DASHES)], "width": 3}
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line=line,
                name=trial,
                legendgroup=trial,
                showlegend=is_first and trial not in named,
                text=told,
                hoverinfo="text",
            ),
            **at,
        )
        named.add(trial)


def _axis(name: str, values: Sequence[Any]) -> str:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < sum(v is not None for v in values):
        return "category"
    is_share = name in FIELDS and FIELDS[name].low == 0 and FIELDS[name].high == 1  # a strength has no magnitudes
    return "log" if numbers and not is_share and 0 < 10 * min(numbers) < max(numbers) else "linear"


def _titled(name: str) -> str:
    unit = FIELDS[name].unit if name in FIELDS else ""
    return f"{name} [{unit}]" if unit else name


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _heading(schedule: Mapping[str, Any], trials: Sequence[str]) -> str:
    score = "" if schedule["score"] is None else f", best {schedule['objective']} {schedule['score']:.4g}"
    through = f" (weights from {len(trials)} trials)" if len(trials) > 1 else ""
    return f"{schedule['study']}: schedule of trial {schedule['trial']}{score}{through}"


def _styled(figure: go.Figure, heading: str, rows: int) -> go.Figure:
    figure.update_layout(
        title={"text": heading, "x": 0.01, "xanchor": "left", "font": {"size": 17}},
        height=PANEL * rows + EDGE,
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        font={"color": INK, "family": "system-ui, sans-serif"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        legend={"title": {"text": "weights from trial"}},
    )
    lines = {"gridcolor": GRID, "linecolor": INK, "showline": True, "zeroline": False}
    figure.update_xaxes(**lines)
    figure.update_yaxes(**lines)
    figure.update_annotations(font={"size": 13})
    return figure
