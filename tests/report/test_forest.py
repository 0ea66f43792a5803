"""The plot of tested rules: a row each, and the words that the table has."""

import io

from PIL import Image
from pytest import MonkeyPatch

from cvtune.report import forest
from cvtune.report.forest import draw_verdicts
from cvtune.verdict import Evidence, judge

TOLD = (
    Evidence("gains", "It gains.", (0.05, 0.06, 0.055, 0.07), 0.02),
    Evidence("unclear", "It is unclear.", (0.1, -0.1, 0.05, -0.02), 0.02),
    Evidence("elsewhere", "It compares sets.", (), 0.02, untestable="one set cannot tell."),
)


def test_a_plot_has_a_row_for_each_rule_that_was_tested(monkeypatch: MonkeyPatch) -> None:
    one, two = (Image.open(io.BytesIO(draw_verdicts(judge(TOLD[:n])))) for n in (1, 2))
    assert one.format == "PNG" and one.width == two.width and two.height > one.height
    drawn = []
    monkeypatch.setattr(forest, "png", lambda figure: drawn.append(figure) or b"")
    draw_verdicts(judge(TOLD))
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "gains\nsupported",
        f"unclear\nundecided\n({judge(TOLD)[1].more()} would tell)",
    ]
    assert axes.get_xlim()[0] < -0.1 and axes.get_xlim()[1] > 0.1, "every unit is within"
