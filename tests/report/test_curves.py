"""The figure of a schedule: what is drawn is what the schedule says, and the file needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cvtune.report.curves import COLORS, points_figure, schedule_figure, write_html


def schedule(values: dict[str, list[Any]], trials: list[str]) -> dict[str, Any]:
    epochs = [
        {"epoch": i + 1, "trial": trial, "step": i + 3, "values": {name: column[i] for name, column in values.items()}}
        for i, trial in enumerate(trials)
    ]
    head = {"format": 1, "study": "digits", "trial": trials[-1], "objective": "val_accuracy", "score": 0.98765}
    return {**head, "epochs": epochs, "recipe": {}}


VALUES = {
    "augment.strength": [0.01, 0.01, 0.5, 0.5],
    "optim.lr": [1e-4, 1e-4, 5e-4, 2e-3],
    "optim.clip_norm": [None, None, 1.0, 2.0],
    "optim.warmup_epochs": [1.0, 1.0, 1.0, 1.0],
    "optim.schedule": ["cosine"] * 4,
}
TRIALS = ["00002", "00002", "00005", "00002"]


def drawn(figure: Any, panel: int) -> dict[float, tuple[Any, str]]:
    """epoch -> (value, color) as the colored lines of a panel show it."""
    axis = "x" if panel == 0 else f"x{panel + 1}"
    shown: dict[float, tuple[Any, str]] = {}
    for trace in figure.data:
        if trace.xaxis == axis and trace.hoverinfo == "text":
            shown |= {x: (y, trace.line.color) for x, y in zip(trace.x, trace.y, strict=True) if x and x % 1 == 0}
    return shown


def test_each_panel_shows_its_value_in_the_color_of_the_trial() -> None:
    figure = schedule_figure(schedule(VALUES, TRIALS))
    color = dict(zip(dict.fromkeys(TRIALS), COLORS, strict=False))
    for panel, column in enumerate(VALUES.values()):
        assert drawn(figure, panel) == {
            epoch: (value, color[trial]) for epoch, (value, trial) in enumerate(zip(column, TRIALS, strict=True), 1)
        }
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "augment.strength",
        "optim.lr",
        "optim.clip_norm",
        "optim.warmup_epochs [epochs]",
        "optim.schedule",
    ]
    assert "0.9877" in figure.layout.title.text and "2 trials" in figure.layout.title.text


def test_only_wide_spans_of_magnitudes_are_logarithmic() -> None:
    figure = schedule_figure(schedule(VALUES, TRIALS))
    axes = [figure.layout[name].type for name in ("yaxis", "yaxis2", "yaxis3", "yaxis4", "yaxis5")]
    assert axes == ["linear", "log", "linear", "linear", "category"]
    with_zero = schedule_figure(schedule({"regularize.l2": [0.0, 1e-4, 1.0, 1.0]}, TRIALS))
    assert with_zero.layout.yaxis.type == "linear"


def test_each_trial_is_in_the_legend_once_and_every_jump_is_a_break() -> None:
    figure = schedule_figure(schedule(VALUES, TRIALS))
    assert [t.name for t in figure.data if t.showlegend] == ["00002", "00005"]
    many = [f"{i:05d}" for i in range(20)]
    lines = schedule_figure(schedule({"optim.lr": [1e-3] * 20}, many)).data[1:]
    assert len({(t.line.color, t.line.dash) for t in lines}) == 20
    jumps = schedule_figure(schedule({"optim.lr": [1e-3, 2e-3, 2e-3]}, ["00001"] * 3)).data[1]
    assert jumps.y.count(None) == 1


def test_nothing_to_draw_is_said() -> None:
    figure = schedule_figure(schedule({}, TRIALS))
    assert "Nothing" in figure.layout.annotations[0].text
    assert "None" not in schedule_figure({**schedule({}, TRIALS), "score": None}).layout.title.text


@pytest.mark.parametrize("name", ["schedule.html", "new/folder/schedule.html"])
def test_file_is_whole_and_needs_no_network(tmp_path: Path, name: str) -> None:
    write_html(schedule_figure(schedule(VALUES, TRIALS)), tmp_path / name)
    text = (tmp_path / name).read_text()
    assert text.rstrip().endswith("</html>") and "Plotly.newPlot" in text
    assert '<script src="' not in text and "<link" not in text
    assert json.dumps("optim.warmup_epochs [epochs]") in text
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == ["schedule.html"]


def test_trials_over_two_axes_show_their_score_and_how_far_they_were_trained() -> None:
    points = [(0.1, 0.9, 0.5, 1, "00000"), (0.6, 0.2, 0.8, 9, "00001")]
    figure = points_figure(points, ("augment.strength", "regularize.strength"), "val_accuracy")
    (drawn,) = figure.data
    assert (drawn.x, drawn.y, drawn.marker.color) == ((0.1, 0.6), (0.9, 0.2), (0.5, 0.8))
    assert drawn.marker.size[1] > drawn.marker.size[0]
    assert drawn.text[1] == "00001: 0.8 after 9 epochs"
    assert (
        figure.layout.xaxis.title.text == "augment.strength" and "val_accuracy of 2 trials" in figure.layout.title.text
    )
