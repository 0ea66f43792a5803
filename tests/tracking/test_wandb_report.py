"""A report in W&B: what is drafted is what the study says, and the document that is sent holds it panel by panel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cvtune.errors import ConfigError
from cvtune.report.content import gather
from cvtune.results import read_tables
from cvtune.track import draft, publish, runs
from cvtune.track.draft import Bars, Differences, Draft, Grid, Words
from cvtune.track.study_run import Material
from tests.report.made import findings, write_study
from tests.tracking.delivery import CANARY, environment
from tests.tracking.wandb_answers import SUMMARY, Run
from tests.tracking.wandb_server import WandbServer, wandb_server

TRIALS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which every trial has a strip."""
    made = write_study(tmp_path_factory.mktemp("studies"), trials=TRIALS)
    for index in range(3, TRIALS):
        place = made / "trials" / f"{index:05d}" / "1" / "media"
        place.mkdir(parents=True)
        Image.new("P", (400, 60)).save(place / "1.png")
    return made


def composed(folder: Path, **tracking: Any) -> Draft:
    of = Material.read(folder)
    study = of.study.set({f"tracking.{name}": value for name, value in tracking.items()})
    of = Material(study, of.folder, of.provenance, of.history)
    return draft.compose(of, gather(folder, read_tables(folder), findings()))


def blocks(made: Draft, title: str) -> tuple[draft.Block, ...]:
    (part,) = [part for part in made.parts if part.title == title]
    return part.blocks


# --- what is drafted


def test_it_says_the_words_of_the_page_and_marks_what_a_name_may_break(folder: Path) -> None:
    made = composed(folder)
    assert [part.title for part in made.parts] == [title for title, _ in draft.PARTS]
    text = "\n".join(b.markdown for b in blocks(made, "The answer") if isinstance(b, Words))
    assert text.startswith("**Made-up sentence.**\n\nAnd a second one.") and "- This study was made up." in text
    assert "code\\_error" in text and "<img" not in draft.readable(made, "")


def test_pictures_of_single_images_stay_where_the_study_is_private(folder: Path) -> None:
    assert composed(folder).media == ("surface", "predictions")
    private = composed(folder, private=True)
    assert private.media == ("surface",)
    assert "tracking.private" in str(blocks(private, "Predictions"))


def test_a_command_and_a_folder_of_this_machine_are_not_told(folder: Path) -> None:
    whole = draft.readable(composed(folder), "team/photos")
    assert str(folder) not in whole and str(folder.parent) not in whole


def test_without_a_confirmation_the_best_trial_stands_beside_noise(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=12, tested=False, noise=2)
    of = Material.read(folder)
    best = of.history.best(of.study)
    (grid,) = blocks(composed(folder), "Best against default")
    assert isinstance(grid, Grid) and grid.panels == (Bars("best", "role"), Differences())
    assert best and grid.runs.ids == tuple(runs.run_id(of.study, of.provenance, t) for t in (best[0].trial, "00012"))
    alone = blocks(composed(write_study(tmp_path / "alone", trials=12, tested=False)), "Best against default")
    assert len(alone) == 1 and "default recipe" in str(alone[0])


def test_runs_are_grouped_by_a_quarter_of_the_strength() -> None:
    strengths = (0.0, 0.2499, 0.25, 0.641, 0.99, 1.0)
    told = ("0 to 0.25", "0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1", "0.75 to 1")
    assert tuple(map(runs.band, strengths)) == told


# --- what a user gets wrong


@pytest.mark.parametrize("text", ["photos", "team/", "/photos", "team/photos/runs", "te am/photos", "team/ph?otos"])
def test_what_is_no_project_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
        publish.place(text)
    assert publish.place("https://wandb.ai/team/photos") == publish.place("team/photos")


def test_without_a_key_or_the_package_the_remedy_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"wandb login.*WANDB_API_KEY.*--dry-run"):
        publish.require_key()
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"cvtune\[wandb-report\]"):
        publish.publish(composed(folder), publish.place("team/photos"), "0", folder)


# --- what is sent


def report(server: WandbServer, folder: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cvtune.cli", "report", str(folder), "--wandb", "team/photos", *options]
    env = environment(server, folder.parent / "home") | more
    return subprocess.run(line, capture_output=True, text=True, env=env, timeout=600, check=False)


def study_run(folder: Path) -> str:
    of = Material.read(folder)
    return runs.run_id(of.study, of.provenance, runs.STUDY)


@pytest.mark.slow
def test_the_document_holds_what_the_dry_run_prints_and_is_a_draft(folder: Path) -> None:
    with wandb_server(CANARY) as server:
        name = study_run(folder)
        server.runs[name] = Run(name, "photos")
        server.runs[name].streams[SUMMARY] = {0: json.dumps({"surface": {"_type": "plotly-file"}})}
        dry = report(server, folder, "--dry-run", WANDB_API_KEY="")
        assert dry.returncode == 0 and server.requests == [], dry.stderr
        done = report(server, folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.answers.unknown == []  # of which creating an access token, which shares a link, would be one
        (sent,) = server.answers.views
    assert done.stdout == f"{server.url}/team/photos/reports/made--Vmlldzox\n"
    told = json.loads(dry.stdout)
    assert told["to"] == "team/photos"
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("team", "photos", told["title"])
    assert (sent["type"], sent["description"]) == ("runs/draft", told["description"])
    assert CANARY not in sent["spec"] and str(folder.parent) not in sent["spec"]
    expected = [block for part in told["parts"] for block in ({"title": part["title"]}, *part["blocks"])]
    found = [block for block in json.loads(sent["spec"])["blocks"] if block["type"] != "paragraph"]
    assert len(found) == len(expected) > 15
    for block, wanted in zip(found, expected, strict=True):
        assert_block(block, wanted)


def assert_block(block: dict[str, Any], wanted: dict[str, Any]) -> None:
    """One block of W&B's document is the one that the dry run printed."""
    if "title" in wanted:
        assert (block["type"], block["children"][0]["text"]) == ("heading", wanted["title"])
    elif "words" in wanted:
        assert (block["type"], block["content"].splitlines()) == ("markdown-block", wanted["words"])
    elif "code" in wanted:
        (line,) = block["children"]
        assert (block["type"], line["children"][0]["text"].splitlines()) == ("code-block", wanted["code"])
    else:
        (shown,) = block["metadata"]["runSets"]
        assert shown["project"] == {"id": "4711", "name": "photos", "entityName": "team"}
        runs = wanted["runs"]
        filters = {item["key"]["name"]: item["value"] for item in shown["filters"]["filters"]}
        asked = {"group": runs["group"], "jobType": runs["job_types"], "name": runs["ids"]}
        assert filters == {name: value for name, value in asked.items() if value}
        assert all(item["key"]["section"] == "run" for item in shown["filters"]["filters"])
        panels = block["metadata"]["panelBankSectionConfig"]["panels"]
        assert len(panels) == len(wanted["panels"])
        for panel, drafted in zip(panels, wanted["panels"], strict=True):
            ((kind, values),) = drafted.items()
            assert panel["viewType"] == VIEWS[kind]
            configured = in_w_and_b(kind, values)
            assert {key: panel["config"].get(key) for key in configured} == configured


VIEWS = {
    "coordinates": "Parallel Coordinates Plot",
    "importance": "Parameter Importance",
    "curves": "Run History Line Plot",
    "bars": "Bar Chart",
    "media": "Media Browser",
    "differences": "Run Comparer",
}


def in_w_and_b(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """What W&B's configuration of such a panel must hold; a value within a section is "SECTION.value.NAME"."""
    if kind == "coordinates":
        return {"columns": [column(axis) for axis in values["axes"]]}
    if kind == "importance":
        return {"targetKey": values["of"]}
    if kind == "media":
        return {"mediaKeys": [values["key"]]}
    if kind == "differences":
        return {"diffOnly": "split"}
    grouped = {"groupBy": f"{values['by']}.value", "groupAgg": "mean", "groupArea": "minmax", "aggregate": True}
    return {"metrics": [values["metric"]], **({"xAxis": "epoch"} if kind == "curves" else {}), **grouped}


def column(axis: dict[str, Any]) -> dict[str, Any]:
    section, _, name = axis["name"].partition(".")
    nested = f"config:{section}.value" + (f".{name}" if name else "")
    accessor = nested if axis["config"] else f"summary:{axis['name']}"
    return {"accessor": accessor, "displayName": axis["name"], **({"log": True} if axis["log"] else {})}


@pytest.mark.slow
def test_a_project_without_the_study_and_a_refused_key_are_said(folder: Path) -> None:
    with wandb_server(CANARY) as server:
        unknown = report(server, folder)
        assert (unknown.returncode, server.answers.views) == (2, [])
        assert "no such project" in unknown.stderr and f"cvtune sync {folder} --dry-run" in unknown.stderr
        server.runs["other"] = Run("other", "photos")
        untracked = report(server, folder)
        assert untracked.returncode == 2 and f"`cvtune sync {folder}` delivers them" in untracked.stderr
        refused = report(server, folder, WANDB_API_KEY="local-" + "0" * 40)
        assert refused.returncode == 1 and "The key was refused" in refused.stderr
        assert server.answers.views == []
    for done in (unknown, untracked, refused):
        assert "Traceback" not in done.stderr and CANARY not in done.stdout + done.stderr
