"""Predicting: what validation sees, files of every kind of mistake, tags, masks on whole images, code of one's own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cvtune import evaluation
from cvtune.data.decode import mask_values
from cvtune.data.listing import IGNORE
from cvtune.data.sources import read_source
from cvtune.errors import ConfigError
from cvtune.pixels import to_square
from cvtune.predict import find_images, predict, save_mask
from cvtune.recipe import Recipe
from cvtune.sections import Confirm, Source
from cvtune.study import Study
from cvtune.trained import Model
from tests.finished import TINY, Finished, finish
from tests.test_best import call

BRIEF = {**TINY, "data.train_fraction": 1.0, "max_epochs": 1, "data.batch_size": 8}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(source: str, storage: Path, **values: object) -> Finished:
    """A study of one trial that was trained for an epoch."""
    recipe = Recipe().replace({**BRIEF, **{name.replace("__", "."): value for name, value in values.items()}})
    settings = Study(
        name="brief", objective="val_loss", data=Source(source=source), recipe=recipe, confirm=Confirm(top=0)
    )
    return finish(settings, storage, [{}], confirmed=False)


@pytest.fixture(scope="module")
def photos(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return trained(str(photo_folder), tmp_path_factory.mktemp("photo_study"))


def test_a_file_is_told_as_validation_tells_it(photos: Finished, tmp_path: Path) -> None:
    """Bit for bit what the trial made of its validation images, from their files alone."""
    files = list(read_source(photos.study.data, tmp_path, 1).parts["val"].items)
    told = list(predict(Model(photos.folder / "best", "cpu"), find_images([str(file) for file in files])))
    (run,) = photos.runs.values()
    wanted = evaluation.predict(run, photos.data.val)[0].softmax(1).numpy()
    assert [each.image.path for each in told] == files
    assert np.allclose([list(each.chances.values()) for each in told], wanted, atol=1e-6)
    assert [each.classes[0] for each in told] == [photos.data.classes[k] for k in wanted.argmax(1)]


def test_a_copy_of_best_is_enough_and_a_broken_file_ends_nothing(
    photos: Finished, photo_folder: Path, tmp_path: Path
) -> None:
    alone, folder = tmp_path / "anywhere", tmp_path / "mixed"
    (photos.folder / "best").rename(alone)
    try:
        (folder / "deep").mkdir(parents=True)
        image = (photo_folder / "flower" / "000.jpg").read_bytes()
        (folder / "a.jpg").write_bytes(image)
        (folder / "b.jpg").write_bytes(image[:300])
        (folder / "deep" / "c.jpg").write_bytes(image)
        (folder / "notes.txt").write_text("not an image, and not named")
        code, out, err = call("predict", str(alone), str(folder), "--json")
        assert code == 3 and "1 of 3 images could not be read" in err
        lines = [json.loads(line) for line in out.splitlines()]
        assert [Path(line["image"]).name for line in lines] == ["a.jpg", "b.jpg", "c.jpg"]
        assert "cannot be decoded" in lines[1]["error"] and lines[0]["chances"] == lines[2]["chances"]
        assert sum(lines[0]["chances"].values()) == pytest.approx(1, abs=1e-5)
        code, out, err = call("predict", str(alone), str(folder / "a.jpg"), str(folder / "*.jpg"))  # a.jpg once
        assert code == 3 and len(out.splitlines()) == 1 and lines[0]["classes"][0] in out and "broken: " in err
        assert call("predict", str(alone), str(folder / "**" / "*.jpg"), "--out", str(tmp_path))[0] == 2
    finally:
        alone.rename(photos.folder / "best")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("flower/000.jpeg", "Did you mean '000.jpg'"),
        ("flowr/000.jpg", "nor does the folder"),
        ("flower/*.png", "matches no image"),
        ("empty", "has no images"),
    ],
)
def test_a_typo_is_helped_before_anything_is_loaded(photo_folder: Path, argument: str, said: str) -> None:
    (photo_folder / "empty").mkdir(exist_ok=True)
    try:
        with pytest.raises(ConfigError, match=said):
            find_images([str(photo_folder / argument)])
    finally:
        (photo_folder / "empty").rmdir()


def test_images_with_several_classes(photo_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(photo_folder, tmp_path / "photos")
    files = sorted((tmp_path / "photos").glob("*/*.jpg"))
    rows = [f"{f.relative_to(tmp_path)},{f.parent.name}{' new' if i % 2 else ''}" for i, f in enumerate(files)]
    (tmp_path / "tags.csv").write_text("\n".join(["path,labels", *rows]))
    made = trained(str(tmp_path / "tags.csv"), tmp_path / "studies")
    assert made.data.task == "multilabel"
    (told,) = predict(Model(made.folder / "best", "cpu"), find_images([str(files[0])]))
    assert told.chances.keys() == set(made.data.classes)
    assert set(told.classes) == {name for name, chance in told.chances.items() if chance > 0.5}
    card = (made.folder / "best" / "README.md").read_text()
    assert "any number of them" in card


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of 48 x 32 px and the masks of what is bright in them."""
    root, rng = tmp_path_factory.mktemp("shapes") / "shapes", np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(12):
        mask = np.zeros((32, 48), np.uint8)
        x, y = (int(v) for v in rng.integers(8, (40, 24)))
        cv2.circle(mask, (x, y), 7, 1, -1)
        image = np.clip(rng.normal(60, 10, (32, 48, 3)) + 120 * mask[..., None], 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:02d}.png")
    return root


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_masks_lie_on_the_whole_image(shapes: Path, tmp_path: Path, fit: str) -> None:
    """What the network said of the square that it saw, at its place; what it did not see is not claimed."""
    made = trained(str(shapes), tmp_path / "studies", model__name="small_unet", data__fit=fit, data__image_size=32)
    model = Model(made.folder / "best", "cpu")
    file = shapes / "images" / "03.png"
    (told,) = predict(model, find_images([str(file)]))
    assert told.mask is not None and told.mask.shape == (32, 48)
    square = model.logits([model.kept(file).pixels])[0].argmax(0).numpy()
    assert np.array_equal(to_square(told.mask, 32, fit, nearest=True), square)
    assert (told.mask == IGNORE).sum() == (16 * 32 if fit == "crop" else 0)
    assert sum(told.chances.values()) == pytest.approx(1)
    path = save_mask(told, tmp_path / "out")
    assert path == tmp_path / "out" / "03.png" and np.array_equal(mask_values(path), told.mask)
    if fit == "crop":  # once is enough for the command
        given = [str(made.folder), str(shapes / "images"), "--json", "--out", str(tmp_path / "masks")]
        code, out, _ = call("predict", *given)
        assert code == 0 and len(list((tmp_path / "masks").glob("*.png"))) == 12
        assert json.loads(out.splitlines()[3])["mask"] == str(tmp_path / "masks" / "03.png")
        both = [str(file), str(shapes / "masks" / "03.png")]
        code, _, said = call("predict", str(made.folder), *both, "--out", str(tmp_path / "masks"))
        assert code == 2 and "would both be" in said
        code, _, said = call("predict", str(made.folder), str(file), "--out", str(shapes / "images"))
        assert code == 2 and "would replace it" in said


def test_a_network_of_ones_own_needs_its_source_unchanged(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "cvtune_test_own_net.py"
    source = "from torch import nn\ndef net(k, recipe):\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, k))\n"
    code.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        made = trained(str(photo_folder), tmp_path / "studies", model__name="python:cvtune_test_own_net:net")
        file = [str(photo_folder / "flower" / "000.jpg")]
        assert next(predict(Model(made.folder / "best", "cpu"), find_images(file))).classes
        code.write_text(source + "# another one\n")
        with pytest.raises(ConfigError, match="another one than the model was trained with"):
            Model(made.folder / "best")
    finally:
        sys.modules.pop("cvtune_test_own_net", None)
