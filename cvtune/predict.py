"""What a trained model makes of image files: batch by batch, a file that cannot be read being told like the others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from cvtune.data.folder import EXTENSIONS, files_below, is_image
from cvtune.data.listing import IGNORE
from cvtune.errors import ConfigError, DataError, did_you_mean
from cvtune.pixels import Mask, frame
from cvtune.trained import Kept, Model

BATCH = 32  # images decoded and passed through the network at once
PALETTE = (  # of mask files, Okabe & Ito's colors, over and over; what was not looked at is white
    *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)),
    *((240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


@dataclass(frozen=True)
class Found:
    """An image file, and the name (a relative path) by which what is made of it is known."""

    path: Path
    name: Path


@dataclass(frozen=True)
class Told:
    """What the model says of one image.

    Attributes:
        image: the file.
        error: why there is nothing to say; all else is then empty.
        classes: the likeliest class; of images with several those with a probability above 0.5; of masks every class
            that was found, the largest first.
        chances: class -> its probability; of masks its share of the pixels that were looked at.
        mask: of masks uint8 (H, W), of the upright image's size, the number of each pixel's class; `IGNORE` where the
            network did not look, because the image is not square and data.fit is "crop".
    """

    image: Found
    error: str = ""
    classes: tuple[str, ...] = ()
    chances: dict[str, float] = field(default_factory=dict)
    mask: Mask | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the mask, as plain JSON."""
        if self.error:
            return {"image": str(self.image.path), "error": self.error}
        return {"image": str(self.image.path), "classes": list(self.classes), "chances": self.chances}

    def line(self, most: int) -> str:
        """The classes and their chances in a line, at most so many; first those it decides for, then the next best."""
        rest = sorted(self.chances.keys() - set(self.classes), key=lambda name: -self.chances[name])
        shown = [f"{name} {self.chances[name]:.1%}" for name in [*self.classes, *rest][:most]]
        return "  ".join(shown if self.classes else ["none", *shown])


def find_images(arguments: Sequence[str]) -> list[Found]:
    """The image files that files, folders (with all below them) and patterns name, each once.

    A file counts whatever its name ends with; what a folder holds or a pattern finds is to have an image's extension.

    Raises:
        ConfigError: one of them is not there, or has no images.
    """
    found: dict[Path, Found] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_file():
            some = [Found(path, Path(path.name))]
        elif path.is_dir():
            some = [Found(file, file.relative_to(path)) for file in files_below(path).images]
        else:
            some = [Found(Path(file), Path(Path(file).name)) for file in _matching(argument)]
        if not some:
            raise ConfigError(_missing(path))
        for each in some:
            found.setdefault(each.path.resolve(), each)
    return list(found.values())


def predict(model: Model, images: Iterable[Found]) -> Iterator[Told]:
    """What a model says of images, in their order. Memory does not grow with their number."""
    rest = iter(images)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(itertools.islice(rest, BATCH)):
            kept = list(pool.map(lambda each: _kept(model, each), some))
            good = [image.pixels for image in kept if not isinstance(image, str)]
            logits = iter(model.logits(good) if good else ())
            for each, image in zip(some, kept, strict=True):
                yield Told(each, image) if isinstance(image, str) else _told(model, each, image.size, next(logits))


def save_mask(told: Told, folder: Path) -> Path:
    """Write the mask of an image below `folder`: a PNG with a palette, whose indices are the numbers of the classes.

    Raises:
        ConfigError: it cannot be written.
    """
    assert told.mask is not None
    path = (folder / told.image.name).with_suffix(".png")
    picture = Image.fromarray(told.mask)
    colors = np.full((256, 3), 255, np.uint8)
    colors[:IGNORE] = np.resize(np.array(PALETTE, np.uint8), (IGNORE, 3))
    picture.putpalette(colors.tobytes())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise ConfigError(f"--out {str(folder)!r} cannot be written ({error}). Give a folder that can be.") from None
    return path


def check_apart(images: Iterable[Found], out: Path) -> None:
    """Refuse two images whose masks would be one file, and masks that would replace an image.

    Raises:
        ConfigError: there are such.
    """
    taken: dict[Path, Found] = {}
    for each in images:
        path = (out / each.name).with_suffix(".png")
        other = taken.setdefault(path, each)
        if other is not each:
            raise ConfigError(
                f"--out: the masks of {other.path} and {each.path} would both be {path}. Name them in two calls, or "
                "give the folder above both."
            )
        if path.resolve() == each.path.resolve():
            raise ConfigError(f"--out: the mask of {each.path} would replace it. Give another folder.")


def _kept(model: Model, image: Found) -> Kept | str:
    try:
        return model.kept(image.path)
    except DataError as error:
        return str(error)


def _told(model: Model, image: Found, size: tuple[int, int], logits: Tensor) -> Told:
    classes = model.about.classes
    if model.about.task == "segment":
        square = logits.argmax(0).numpy().astype(np.uint8)
        return _segmented(classes, image, square, _on_image(square, size, model.about.recipe.data.fit))
    if model.about.task == "multilabel":
        chances = dict(zip(classes, logits.sigmoid().tolist(), strict=True))
        return Told(image, classes=tuple(name for name, chance in chances.items() if chance > 0.5), chances=chances)
    chances = dict(zip(classes, logits.softmax(0).tolist(), strict=True))
    return Told(image, classes=(classes[int(logits.argmax())],), chances=chances)


def _segmented(classes: Sequence[str], image: Found, square: Mask, mask: Mask) -> Told:
    shares = np.bincount(square.ravel(), minlength=len(classes)) / square.size
    largest = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k]]
    chances = dict(zip(classes, shares.tolist(), strict=True))
    return Told(image, classes=tuple(classes[k] for k in largest), chances=chances, mask=mask)


def _on_image(square: Mask, size: tuple[int, int], fit: str) -> Mask:
    """What was said of the square that the network saw, where it lies on the whole image of this height and width."""
    side, whole = len(square), np.broadcast_to(np.uint8(0), size)
    width, height, left, top = frame(whole, side, fit)
    canvas = np.full((height, width), IGNORE, np.uint8)
    canvas[top : top + side, left : left + side] = square
    return np.asarray(cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _matching(pattern: str) -> list[str]:
    found = glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(name for name in found if is_image(Path(name).name) and Path(name).is_file())


def _missing(path: Path) -> str:
    """Why an argument names no images, and what may have been meant."""
    if path.is_dir():
        return f"{path} has no images ({', '.join(EXTENSIONS)}). Name the files themselves if they end otherwise."
    if has_magic(str(path)):
        return f"{str(path)!r} matches no image. Quote the pattern so that the shell leaves it; ** stands for folders."
    try:
        beside = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f"{str(path)!r} does not exist, nor does the folder {str(path.parent)!r}. Check the path."
    return f"there is no image {str(path)!r}. {did_you_mean(path.name, beside, 3)}"
