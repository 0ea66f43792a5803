"""Writes a study's report: `report.html`, and the main figures as PNG in `report/`. Loads neither torch nor Ray."""

from __future__ import annotations

from pathlib import Path

from cvtune.analysis import analyse
from cvtune.durable import write_whole
from cvtune.report import figures, stills
from cvtune.report.content import Content, gather
from cvtune.report.page import render
from cvtune.report.pictures import FOLDER, Pictures, bring
from cvtune.results import read_tables, write_tables

PAGE = "report.html"


def write_report(folder: Path, cache: Path | None = None, with_images: bool = True) -> Path:
    """Analyse a study as far as it is and write its report. Returns the page.

    Args:
        cache: folder of decoded images; None: the usual one.
        with_images: whether to draw what needs the study's images (augmentation sheet, worst errors).

    Raises:
        ConfigError: the folder holds no study that this version can read.
        OSError: the disk is full or the folder cannot be written.
    """
    content = collect(folder)
    pictures = _pictures(folder, content, cache) if with_images else Pictures(None, {})
    for name, picture in stills.draw(content).items():
        write_whole(folder / FOLDER / f"{name}.png", picture)
    found = content.findings
    if found.surface is not None:  # for tracking
        drawn = figures.surface(found.surface, found.ridge, content.tables.study.better)
        write_whole(folder / FOLDER / "surface.json", drawn.to_json())
    write_whole(folder / PAGE, render(content, pictures))
    return folder / PAGE


def collect(folder: Path) -> Content:
    """What a report of a study shows, as far as the study is.

    Raises:
        ConfigError: the folder holds no study that this version can read.
    """
    write_tables(folder)
    tables = read_tables(folder)
    return gather(folder, tables, analyse(tables))


def _pictures(folder: Path, content: Content, cache: Path | None) -> Pictures:
    if content.recipe is None:
        return Pictures(None, {})
    errors = content.classes.errors if content.classes else ()
    return bring(folder, content.recipe, [error.sample for error in errors], cache)
