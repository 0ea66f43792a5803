"""What a report says is what the study's tables say, for studies of every shape; the commands that write it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cvtune.cli import app
from cvtune.durable import write_whole
from cvtune.errors import ConfigError
from cvtune.report import compare, pictures, rows, stills
from cvtune.report.content import Content, gather
from cvtune.report.page import picture, render
from cvtune.report.pictures import Pictures
from cvtune.results import read_tables, write_tables
from tests.report.made import CLASSES, FAILED, ODD, findings, study_of, write_study

NO_PICTURES = Pictures(None, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def content(folder: Path) -> Content:
    return gather(folder, read_tables(folder), findings())


def test_every_trial_is_a_row_with_its_curve(content: Content) -> None:
    made, tables = content.rows, content.tables
    assert len(made.rows) == 46 and made.column("trial") == tables.column("trial").tolist()
    best = [float("nan") if v is None else v for v in made.column("best")]
    assert best == pytest.approx(tables.column("best").tolist(), rel=1e-4, nan_ok=True)
    for best, epochs, curve, state in zip(
        *(made.column(name) for name in ("best", "epochs")), made.curves, made.column("state"), strict=True
    ):
        assert len(curve) == epochs
        assert (best is None) == (state in FAILED.values()) and (best is None or best == max(curve))
    assert {made.column("state")[i] for i in FAILED} == set(FAILED.values())
    assert [c.name for c in made.searched] == ["augment.strength", "regularize.strength", "optim.lr", "optim.name"]
    assert [c.log for c in made.searched] == [False, False, True, False]
    assert made.has_test and sum(v is not None for v in made.column("test")) == 6


def test_thousands_of_reports_are_thinned_but_never_lose_the_last(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CURVE_POINTS", 60)
    thinned = rows.of_tables(content.tables)
    assert thinned.every == -(-sum(map(len, content.rows.curves)) // 60)
    for short, whole in zip(thinned.curves, content.rows.curves, strict=True):
        assert short[-1:] == whole[-1:] and short[:1] == whole[:1] and len(short) <= len(whole)
    assert sum(map(len, thinned.curves)) < 60 + 2 * len(thinned.curves)


def test_the_answer_is_the_confirmed_one(content: Content) -> None:
    compared, told = content.tables.comparison, content.answer
    assert compared is not None and told.winner == compared["winner"]
    winner = content.rows.column("trial").index(told.winner)
    values = {setting.name: setting.value for setting in told.recipe}
    assert values["augment.strength"] == f"{content.rows.column('augment.strength')[winner]:.3g}"
    own = next(r for r in compared["recipes"] if r["label"] == told.winner)
    assert (
        told.cards[0].value == f"{own['mean']:.4f}" and f"{own['low']:.4g} to {own['high']:.4g}" in told.cards[0].note
    )
    assert told.sentences == findings().sentences and told.warnings[0] == findings().warnings[0]
    assert any("diverged" in warning and "00005" in warning for warning in told.warnings)


def test_a_value_at_the_end_of_its_range_asks_for_a_wider_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=12, tested=False)
    tables = read_tables(folder)
    best = int(np.nanargmax(tables.trials["best"]))
    trials = {**tables.trials, "optim.lr": tables.trials["optim.lr"].copy()}
    trials["optim.lr"][best] = 0.099
    trials["augment.strength"] = np.full(12, 1.0)
    steps = gather(folder, dataclasses.replace(tables, trials=trials), findings()).answer.steps
    assert any("optim.lr" in step and "upper end, 0.1" in step for step in steps)
    assert not any("augment.strength" in step for step in steps)  # there is nothing beyond 1
    assert any("confirm.top" in step for step in steps)


def test_classes_and_worst_errors_come_from_the_winners_models(folder: Path, content: Content) -> None:
    told = content.classes
    assert told is not None and told.seeds == 3 and told.confusion is not None
    assert {one.name for one in told.classes} == set(CLASSES)
    assert [one.score for one in told.classes] == sorted(one.score for one in told.classes)
    assert np.allclose(np.sum(told.confusion, axis=1), 100, atol=0.3)
    seeds = [
        t for t, r in zip(content.rows.column("trial"), content.rows.column("role"), strict=True) if told.label in r
    ]
    stored = [np.load(folder / "trials" / trial / "test.npz") for trial in seeds]
    labels, chance = stored[0]["labels"], np.mean([one["probabilities"] for one in stored], axis=0)
    recall = np.mean([(one["probabilities"].argmax(1) == labels)[labels == 0].mean() for one in stored])
    assert next(one.score for one in told.classes if one.name == ODD) == pytest.approx(recall)
    worst = told.errors[0]
    wrong = chance.argmax(1) != labels
    assert chance[worst.sample, labels[worst.sample]] == min(chance[np.arange(len(labels)), labels][wrong])


def test_names_are_escaped_wherever_they_stand(content: Content) -> None:
    html = render(content, NO_PICTURES)
    assert ODD not in html and "<img src=x" not in html
    data = html.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in data and json.loads(data)["trials"]["rows"][0][0] == "00000"
    assert 'src="http' not in html.replace(" ", "") and '<link rel="stylesheet' not in html
    assert 4.5e6 < len(html) < 6e6


def test_three_trials_without_test_images_and_a_study_without_a_score(tmp_path: Path) -> None:
    small = write_study(tmp_path, "small", trials=3, tested=False, complete=False)
    made = gather(small, read_tables(small), dataclasses.replace(findings(), surface=None, sentences=()))
    assert "Trial" in made.answer.sentences[0] and "luck" in made.answer.sentences[0]
    assert any("no test images" in warning for warning in made.answer.warnings) and made.classes is None
    html = render(made, NO_PICTURES)
    assert 'class="plot" data-figure="surface"' not in html and "Class by class" not in html
    nothing = tmp_path / "nothing"
    (nothing / "journal").mkdir(parents=True)
    write_whole(nothing / "study.json", study_of("nothing").to_json({}))
    write_tables(nothing)
    empty = gather(nothing, read_tables(nothing), dataclasses.replace(findings(), surface=None, sentences=()))
    assert empty.answer.sentences[0].startswith("No trial has a score")
    assert '<div class="plot wide"' not in render(empty, NO_PICTURES)


def test_stills_are_pictures_with_something_on_them(content: Content) -> None:
    made = stills.draw(content)
    assert set(made) == {"surface", "importance", "curves"}
    for name, png in made.items():
        assert png[:4] == b"\x89PNG" and len(png) < 200_000, name


def test_a_picture_is_small_enough_for_a_page(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 1800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert picture(tmp_path / "large.png").startswith("data:image/webp") and picture(tmp_path / "none.png") == "data:,"


def test_missing_images_leave_a_note_and_no_pictures(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=3, tested=False)
    definition = json.loads((folder / "study.json").read_text())
    definition["study"]["data"]["source"] = str(tmp_path / "gone")
    (folder / "study.json").write_text(json.dumps(definition))
    recipe = json.loads((folder / "best" / "recipe.json").read_text())
    found = pictures.bring(folder, recipe, [0])
    assert found.sheet is None and not found.errors and "gone" in found.note


@pytest.mark.slow
def test_command_writes_page_stills_and_pictures_of_the_images(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=16)
    line = [sys.executable, "-m", "cvtune.cli", "report", "made", "--storage", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    assert {p.name for p in (folder / "report").iterdir()} >= {"curves.png", "augmentation.png", "errors"}
    html = (folder / "report.html").read_text()
    assert html.count("data:image/") >= 3 and "test image" in html
    told = json.loads((folder / "report" / "pictures.json").read_text())
    assert {int(p.stem) for p in (folder / "report" / "errors").iterdir()} == set(told["samples"])
    assert not list(folder.glob("**/.*.tmp"))


def test_comparing_names_what_differs_and_what_forbids_it(tmp_path: Path) -> None:
    one, other = write_study(tmp_path, "one", 16), write_study(tmp_path, "other", 20, tested=False)
    found = CliRunner().invoke(
        app, ["compare", "one", "other", "--storage", str(tmp_path), "-o", str(tmp_path / "page.html")]
    )
    assert found.exit_code == 0, found.output
    assert "augment.strength" in found.output and "not confirmed" in found.output
    compared = compare.compare([one, other])
    assert [line.study for line in compared.lines] == ["one", "other"]
    assert compared.lines[0].interval and not compared.lines[1].interval
    recipes = [json.loads((folder / "best" / "recipe.json").read_text()) for folder in (one, other)]
    shown = {d.name: d.values for d in compared.differences}
    assert shown["optim.lr"] == tuple(f"{recipe['optim']['lr']:.3g}" for recipe in recipes)
    assert any("different metrics" in note for note in compared.notes)
    assert "optim.lr" in (tmp_path / "page.html").read_text()
    with pytest.raises(ConfigError, match="at least two"):
        compare.compare([one])
