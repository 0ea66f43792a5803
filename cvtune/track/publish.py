"""A report in W&B, by W&B's own `wandb-workspaces`: the only module that imports that package.

It is saved as a draft, which nobody else sees before its author publishes it in W&B, and no link is ever shared.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cvtune.errors import ConfigError
from cvtune.track import launch
from cvtune.track.client import bounded, quieten
from cvtune.track.draft import (
    Bars,
    Code,
    Coordinates,
    Curves,
    Differences,
    Draft,
    Grid,
    Importance,
    Media,
    Panel,
    Runs,
    Words,
)

TIMEOUT_S = 25  # of one request
TITLE = 128  # characters that W&B takes
FULL = {"w": 24, "h": 12}  # a panel over the whole width
STUDY_RUN = """
query StudyRun($project: String!, $entity: String!, $name: String!) {
    project(name: $project, entityName: $entity) { run(name: $name) { summaryMetrics } }
}
"""


@dataclass(frozen=True)
class Place:
    """A project of W&B."""

    entity: str
    project: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}"


@dataclass(frozen=True)
class Published:
    """Where the draft is, and the plots among its panels that W&B does not have yet."""

    url: str
    missing: tuple[str, ...]


def place(text: str) -> Place:
    """The project that a user names.

    Raises:
        ConfigError: it is not ENTITY/PROJECT.
    """
    parts = text.removeprefix("https://wandb.ai/").split("/")
    if len(parts) != 2 or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", part) for part in parts):
        raise ConfigError(
            f"--wandb {text!r}: give a project of W&B as ENTITY/PROJECT, such as my-team/cvtune: the team or user, one "
            "slash, and the project. Letters, digits, '.', '_' and '-' are allowed."
        )
    return Place(*parts)


def require_key() -> None:
    """
    Raises:
        ConfigError: W&B's client would find no key.
    """
    if not launch.has_key(os.environ):
        raise ConfigError(
            f"--wandb: there is no key of W&B for {launch.server(os.environ)}. Run `wandb login` once, or set "
            "WANDB_API_KEY. `--dry-run` needs none."
        )


def publish(draft: Draft, to: Place, study_run: str, folder: Path) -> Published:
    """Save a report as a new draft.

    Args:
        study_run: id of the run that stands for the study.
        folder: of the study, to be named in errors.

    Raises:
        ConfigError: `wandb-workspaces` is not installed, or W&B has no such project, or not the study's runs in it.
        Undelivered: W&B refuses or does not answer.
    """
    quieten()
    reports = _library()
    with bounded("reading the project"):
        import wandb

        names = {"entity": to.entity, "project": to.project, "name": study_run}
        api: Any = wandb.Api(timeout=TIMEOUT_S)
        found = api._service_api.execute_graphql(STUDY_RUN, names, timeout=TIMEOUT_S)
    summary = _summary(found, to, folder)
    with bounded("saving the report"):
        report = reports.Report(
            entity=to.entity,
            project=to.project,
            title=draft.title[:TITLE],
            description=draft.description,
            blocks=_blocks(reports, draft, to),
            width="fluid",
        )
        url = str(report.save(draft=True).url)
    own = [key for key in draft.media if key == "surface"]
    return Published(url, tuple(key for key in own if key not in summary))


def _library() -> ModuleType:
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError:
        raise ConfigError(
            "--wandb: reports in W&B need the package wandb-workspaces. Install cvtune[wandb-report], or "
            "`pip install wandb-workspaces`. `--dry-run` works without."
        ) from None
    return reports


def _summary(found: dict[str, Any], to: Place, folder: Path) -> dict[str, Any]:
    project = found.get("project")
    if project is None:
        raise ConfigError(
            f"--wandb {to}: W&B has no such project, or the key may not read it. Check entity and project: "
            f"`cvtune sync {folder} --dry-run` says in its first line where the study's runs go."
        )
    if project.get("run") is None:
        raise ConfigError(
            f"--wandb {to}: this project has no runs of the study, so the panels would be empty. "
            f"`cvtune sync {folder}` delivers them (add --dry-run to see to which project); then name that project."
        )
    summary: dict[str, Any] = json.loads(project["run"].get("summaryMetrics") or "{}")
    return summary


def _blocks(reports: ModuleType, draft: Draft, to: Place) -> list[Any]:
    made: list[Any] = []
    for part in draft.parts:
        made.append(reports.H1(part.title))
        for block in part.blocks:
            if isinstance(block, Words):
                made.append(reports.MarkdownBlock(block.markdown))
            elif isinstance(block, Code):
                made.append(reports.CodeBlock(block.text, language=block.language))
            else:
                made.append(_grid(reports, block, to))
    return made


def _grid(reports: ModuleType, grid: Grid, to: Place) -> Any:
    panels = [PANELS[type(panel)](reports, panel) for panel in grid.panels]
    for row, panel in enumerate(panels):
        panel.layout = reports.Layout(y=row * FULL["h"], **FULL)
    runset = reports.Runset(to.entity, to.project, name=grid.runs.name, filters=_filters(grid.runs))
    return reports.PanelGrid(runsets=[runset], panels=panels)


def _filters(runs: Runs) -> str:
    """In the language of wandb-workspaces: `Metric` names what every run has."""
    said = [f"Metric('Group') == {runs.group!r}"]
    said += [f"Metric('JobType') in {list(runs.job_types)!r}"] if runs.job_types else []
    said += [f"Metric('ID') in {list(runs.ids)!r}"] if runs.ids else []
    return " and ".join(said)


def _coordinates(reports: ModuleType, panel: Coordinates) -> Any:
    columns = [
        reports.ParallelCoordinatesPlotColumn(
            metric=(reports.Config if axis.config else reports.SummaryMetric)(axis.name),
            display_name=axis.name,
            log=axis.log or None,
        )
        for axis in panel.axes
    ]
    return reports.ParallelCoordinatesPlot(columns=columns)


def _curves(reports: ModuleType, panel: Curves) -> Any:
    grouped = {"groupby": reports.Config(panel.by), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return reports.LinePlot(title=f"{panel.metric} by {panel.by}", x="epoch", y=[panel.metric], **grouped)


def _bars(reports: ModuleType, panel: Bars) -> Any:
    grouped = {"groupby": reports.Config(panel.by), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return reports.BarPlot(title=f"{panel.metric} by {panel.by}", metrics=[panel.metric], **grouped)


PANELS: dict[type[Panel], Callable[[ModuleType, Any], Any]] = {
    Coordinates: _coordinates,
    Importance: lambda reports, panel: reports.ParameterImportancePlot(with_respect_to=panel.of),
    Curves: _curves,
    Bars: _bars,
    Media: lambda reports, panel: reports.MediaBrowser(title=panel.key, media_keys=[panel.key]),
    Differences: lambda reports, panel: reports.RunComparer(diff_only="split"),
}
