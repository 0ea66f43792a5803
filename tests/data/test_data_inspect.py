"""What `cvtune check` finds: every kind of fault that it speaks of is made and must be found, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from cvtune.cli import app
from cvtune.data import inspect as inspecting
from cvtune.data import open_dataset, read_source
from cvtune.data.fingerprint import fingerprint, refuse_equal
from cvtune.data.inspect import Facts, inspect, sample, spatial_information
from cvtune.data_checks import checks
from cvtune.errors import DataError
from cvtune.preflight import prepare
from cvtune.ranges import advise
from cvtune.recipe import Data
from cvtune.sections import Source
from cvtune.study import for_data


@pytest.fixture
def folder(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the 60 photos that a test may spoil."""
    return Path(shutil.copytree(photo_folder, tmp_path / "photos"))


def facts_of(path: Path) -> Facts:
    source = Source(source=str(path))
    return inspect(read_source(source, path.parent), str(path), 2)


def states(facts: Facts) -> dict[str, str]:
    return {check.name: check.state for check in checks(facts, 0.01, 10, 100)}


def test_sound_photos_have_nothing_but_few_images_against_them(folder: Path) -> None:
    facts = facts_of(folder)
    assert facts.total == 60 and facts.decoded == 60 and facts.task == "classify"
    assert facts.shorter == (48, 48, 48) and facts.longer == (64, 64, 64)
    assert facts.formats == {"JPEG RGB": 60} and facts.kinds == {"uint8 with 3 channels": 60}
    assert not facts.broken and not facts.exact.extra and not facts.blank
    found = states(facts)
    assert found.pop("images") == "note" and found.pop("classes") == "note"  # fewer than 20 of each in train
    found.pop("near copies")  # crops of two photos: some are nearly the same
    assert set(found.values()) == {"ok"}


def test_copies_are_found_with_where_they_leak_and_whose_label_differs(folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    for part in ("train", "val"):
        shutil.copytree(folder, parts / part)
    facts = facts_of(parts)
    assert facts.exact.extra == 60 and facts.exact.leaked == {"val": 60} and not facts.exact.conflicts
    shutil.copy(folder / "flower" / "000.jpg", folder / "building" / "zzz.jpg")
    facts = facts_of(folder)
    assert facts.exact.extra == 1 and facts.exact.conflicts == 1
    assert {name.rsplit("/", 1)[-1] for name in facts.exact.example.split(" = ")} == {"000.jpg", "zzz.jpg"}


def test_an_image_that_was_saved_again_is_a_near_copy_and_no_exact_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        soft = cv2.GaussianBlur(rng.uniform(0, 255, (48, 64, 3)), (0, 0), 5)
        image = cv2.normalize(soft, np.zeros_like(soft), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "set" / "ab"[i % 2] / f"{i}.png"), image)
    assert facts_of(tmp_path / "set").near.extra == 0
    cv2.imwrite(str(tmp_path / "set" / "b" / "again.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 60])
    facts = facts_of(tmp_path / "set")
    assert facts.near.extra == 1 and facts.exact.extra == 0


def test_broken_files_are_named_whether_their_header_or_their_pixels_are(folder: Path) -> None:
    (folder / "flower" / "000.jpg").write_bytes(b"no image")
    whole = (folder / "flower" / "001.jpg").read_bytes()
    (folder / "flower" / "001.jpg").write_bytes(whole[: len(whole) // 2])
    facts = facts_of(folder)
    assert len(facts.broken) == 2 and all(text.startswith("flower/00") for text in facts.broken)
    assert states(facts)["files"] == "red"


def test_equal_and_blank_images_are_refused(folder: Path) -> None:
    for file in folder.glob("*/*.jpg"):
        cv2.imwrite(str(file), np.full((48, 64, 3), 90, np.uint8))
    facts = facts_of(folder)
    found = states(facts)
    assert facts.blank == 60 and found["exact copies"] == "red" and found["content"] == "red"
    assert facts.near.extra == 0  # blank images have no likeness


def test_rows_of_parquet_have_headers_too(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*/*.jpg"))
    table = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    parquet.write_table(pa.table(table), tmp_path / "photos.parquet")
    facts = facts_of(tmp_path / "photos.parquet")
    assert facts.formats == {"JPEG RGB": 60} and facts.shorter == (48, 48, 48) and not facts.exact.extra


def test_only_a_sample_is_decoded_and_large_photos_are_fewer(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert len(sample(100_000, 100.0)) == inspecting.DECODED
    assert len(sample(100_000, 12e6)) == inspecting.DECODED_PIXELS // 12_000_000
    assert (np.diff(sample(100, 1e12)) > 0).all() and len(sample(100, 1e12)) == 16
    monkeypatch.setattr(inspecting, "DECODED", 20)
    facts = facts_of(folder)
    assert facts.decoded == 20 and facts.total == 60 and sum(facts.formats.values()) == 60


def test_intricacy_rises_with_the_amount_of_edges() -> None:
    flat = np.full((64, 64), 100, np.float32)
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 255, (64, 64)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (9, 9), 3)
    assert spatial_information(flat) == 0 < spatial_information(soft) < spatial_information(noise)


def test_pixels_of_masks_and_images_of_tags_are_counted(tmp_path: Path) -> None:
    for side in ("images", "masks"):
        (tmp_path / "set" / side).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{i}.png"), rng.integers(0, 255, (20, 20, 3), np.uint8))
        mask = np.zeros((20, 20), np.uint8)
        mask[:5] = 1
        cv2.imwrite(str(tmp_path / "set" / "masks" / f"{i}.png"), mask)
    facts = facts_of(tmp_path / "set")
    assert facts.task == "segment" and facts.counts == {"train": (12 * 300, 12 * 100)} and facts.imbalance == 3
    manifest = tmp_path / "tags.csv"
    rows = [f"set/images/{i}.png,{'a' if i % 2 else 'a;b'}" for i in range(12)]
    manifest.write_text("path,labels\n" + "\n".join(rows) + "\n")
    facts = facts_of(manifest)
    assert facts.task == "multilabel" and sum(n[1] for n in facts.counts.values()) == 6


def test_images_of_which_none_can_be_decoded_are_a_sentence(folder: Path) -> None:
    for file in folder.glob("*/*.jpg"):
        file.write_bytes(b"no image at all")
    with pytest.raises(DataError, match="none of 60 images can be decoded"):
        facts_of(folder)


def test_ten_images_are_said_to_be_too_few_and_by_how_much(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(sorted(folder.iterdir())[-1])
    for file in [file for side in folder.iterdir() for file in sorted(side.iterdir())[5:]]:
        file.unlink()
    facts = facts_of(folder)
    line = next(c for c in checks(facts, 0.01, 0, 1) if c.name == "images")
    assert line.state == "note" and "each of the 2 validation images is 50.0% of it" in str(line)
    assert "data.folds=4" in str(line), "there are 4 of each class to train and validate on"
    assert {one.name: one.code for one in advise(facts)}["data.batch_size"] == "8"
    prepared = prepare(for_data(str(folder)).set({"data.folds": 4, "data.image_size": 16}), tmp_path)
    assert any("below 200 training images (6)" in notice for notice in prepared.notices)


def test_a_folder_without_any_image_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes" / "more").mkdir(parents=True)
    (tmp_path / "notes" / "a.txt").write_text("x")
    (tmp_path / "notes" / "more" / "b.docx").write_text("y")
    for command in (["check"], ["init", "-o", str(tmp_path / "w.py")]):
        done = CliRunner().invoke(app, [command[0], str(tmp_path / "notes"), *command[1:]])
        assert isinstance(done.exception, DataError) and "is no data set" in str(done.exception)
        assert "1 .txt, 1 .docx" in str(done.exception)


def test_equal_images_are_refused_by_init_and_run_too(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*/*.jpg"))
    for file in files[1:]:
        shutil.copy(files[0], file)
    done = CliRunner().invoke(app, ["init", str(folder), "-o", str(tmp_path / "w.py"), "--cache", str(tmp_path)])
    assert isinstance(done.exception, DataError) and "exact copies" in str(done.exception)
    assert "have the same bytes" in done.output and not (tmp_path / "w.py").exists()
    with pytest.raises(DataError, match=r"all 60 images have the same bytes \(such as .* so there is nothing to learn"):
        open_dataset(Source(source=str(folder)), Data(image_size=16), tmp_path, None, 1)


def test_images_that_cannot_be_read_are_not_taken_for_equal(folder: Path, tmp_path: Path) -> None:
    listing = read_source(Source(source=str(folder)))
    for file in folder.glob("*/*.jpg"):
        file.unlink()
    found = fingerprint(listing, tmp_path, 1)
    assert found.distinct == 60
    refuse_equal(listing, found)  # raises nothing


def test_command_tells_what_it_found_and_what_follows(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(folder), "--cache", str(tmp_path)])
    assert done.exit_code == 0 and "augment.strength" in done.output and "Uniform(0, 0.6)" in done.output
    told = json.loads(CliRunner().invoke(app, ["check", str(folder), "--json", "--cache", str(tmp_path)]).stdout)
    assert told["facts"]["images"]["train"] == 42
    assert {line["state"] for line in told["checks"]} <= {"ok", "note"}
    assert {"optim.lr", "data.image_size"} <= {row["name"] for row in told["ranges"]}
