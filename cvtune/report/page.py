"""The page: content and figures become one HTML file that needs nothing else, not even a network.

What is bounded: plotly.js takes 4.8 MB, curves `rows.CURVE_POINTS` points, pictures `PICTURE` px each, of which there
are at most about thirty. With 3,000 trials that is below 15 MB.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from cvtune.analysis import AXES
from cvtune.history import FAILED
from cvtune.report import curves, figures
from cvtune.report import rows as rows_of
from cvtune.report.content import Content
from cvtune.report.pictures import Pictures
from cvtune.report.rows import ranked

PICTURE = 1400  # px, the longest side of a picture in a page


def render(content: Content, pictures: Pictures) -> str:
    """The whole page."""
    study = content.tables.study
    drawn = _figures(content)
    around = figures.parallel(content.rows, study.objective, study.better)
    order: Sequence[int] = ()
    if around is not None:
        drawn["parallel"], order = around
    data = {
        "trials": rows_of.as_json(content.rows),
        "parallel": list(order),
        "objective": study.objective,
        "better": study.better,
        "best": _best(content),
        "failed": FAILED,
    }
    return fill(
        "page.html",
        drawn,
        data,
        title=f"{study.name} - cvtune",
        content=content,
        findings=content.findings,
        study=study,
        axes=AXES,
        pictures=pictures,
        recipe=json.dumps(content.recipe, indent=2) if content.recipe else "",
        made=time.strftime("%Y-%m-%d %H:%M", time.localtime(content.made)),
    )


def _best(content: Content) -> int | None:
    """The number of the trial to stand out: the winner, or the best of the search where the winner is none of it."""
    order, trials = ranked(content.rows, content.tables.study.better), content.rows.column("trial")
    return next((i for i in order if trials[i] == content.answer.winner), order[0] if order else None)


def fill(template: str, drawn: Mapping[str, go.Figure], data: Mapping[str, Any], **values: Any) -> str:
    """A template of this package with figures and data in it; everything in `values` is escaped."""
    made = {name: json.loads(figure.to_json()) for name, figure in drawn.items()}
    return (
        _environment()
        .get_template(template)
        .render(
            css=_verbatim("page.css"),
            js=_verbatim("page.js"),
            plotly=Markup(get_plotlyjs()) if drawn else "",
            data=_embedded({**data, "figures": made}),
            figures=made,
            **values,
        )
    )


def _figures(content: Content) -> dict[str, go.Figure]:
    """Every figure that there is something for, by the name under which the template places it."""
    found, study = content.findings, content.tables.study
    drawn: dict[str, go.Figure] = {}
    if found.surface is not None:
        drawn["surface"] = figures.surface(found.surface, found.ridge, study.better)
        if not found.surface.blank.all():
            drawn["profile"] = figures.surface(found.surface, None, study.better, profile=True)
    if found.importances:
        drawn["importance"] = figures.importance(found.importances)
    if found.gap is not None:
        drawn["gap"] = figures.gap(found.gap, AXES)
    for example in content.examples:
        curves_of = (example.steps, example.val, example.clean, example.metrics)
        drawn[f"curve-{example.what}"] = figures.excerpt(*curves_of, _frame(content))
    if content.schedule is not None:
        drawn["schedule"] = curves.schedule_figure(content.schedule)
    return drawn


def _frame(content: Content) -> tuple[float, tuple[float, float]]:
    """The last epoch, and the lowest and highest score of the trials that are shown one by one."""
    seen = [v for example in content.examples for v in (*example.val, *example.clean) if v is not None]
    last = max(step for example in content.examples for step in example.steps)
    return float(last), (min(seen), max(seen))


def picture(path: Path) -> Markup:
    """A picture as a `data:` URL, at most `PICTURE` px wide or high; an empty one where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            if max(image.size) <= PICTURE and path.stat().st_size < 100_000:
                return _url("png", path.read_bytes()) if image.format == "PNG" else _url("webp", _webp(image))
            image.thumbnail((PICTURE, PICTURE))
            return _url("webp", _webp(image))
    except OSError:
        return Markup("data:,")


def _webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "webp", quality=88)
    return out.getvalue()


def _url(kind: str, content: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def _embedded(data: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element it stands in, whatever a name contains."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _environment() -> Environment:
    loader = PackageLoader("cvtune.report", "")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["picture"] = picture
    return made


def _verbatim(name: str) -> Markup:
    return Markup(resources.files("cvtune.report").joinpath(name).read_text(encoding="utf-8"))
