"""Augmented images per CPU-second: ours from the decoded store, beside the textbook's DataLoader, which decodes.

    PYTHONPATH=. python tests/bench/supply.py DATA_DIR --image-size 64 --rounds 5

DATA_DIR holds train/<class>/* and val/<class>/*. In turns in one process, without workers on either side, so that its
CPU time is all there is. `--enlarge S` first makes JPEGs of S px of them, for sizes that the photos lack. Our own
pipeline comes three times: whole, without blur, noise and JPEG (of these the textbook has blur alone), and at strength
0, which is what cutting to size, batching and normalizing take.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]
BATCH, STRENGTH = 64, 0.5
SIDES: dict[str, dict[str, Any]] = {
    "textbook": {},
    "ours, its pipeline": {"augment.policy": "python:peer_parts:pipeline"},
    "ours, own pipeline": {},
    "  without blur, noise, JPEG": {"augment.quality": 0.0},
    "  at strength 0": {"augment.strength": 0.0},
}


def textbook(data: Path, size: int, images: int) -> float:
    """CPU-seconds of the peer's loader: read, decode, augment, collate; the peer's own is inside its function."""
    import cv2
    import torch
    from textbook_ray import pipeline

    files = sorted((data / "train").glob("*/*"))

    class Photos(torch.utils.data.Dataset[Any]):
        transform = pipeline(STRENGTH, size)

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> Any:
            image = cv2.cvtColor(cv2.imread(str(files[i])), cv2.COLOR_BGR2RGB)
            return self.transform(image=image)["image"], 0

    batches = iter(torch.utils.data.DataLoader(Photos(), BATCH, shuffle=True, drop_last=True))
    next(batches)
    return _timed(lambda: next(batches), images)


def ours(data: Path, size: int, images: int, given: dict[str, Any], cache: Path) -> float:
    """CPU-seconds of ours, to the normalized batch, as the peer's ends."""
    import torch

    from cvtune import Recipe
    from cvtune.augment import Pipeline
    from cvtune.data import open_dataset
    from cvtune.data.loader import Loader
    from cvtune.normalize import normalizer_of
    from cvtune.sections import Source

    values = {"data.image_size": size, "data.fit": "squash", "augment.strength": STRENGTH}
    recipe = Recipe().replace(values | given)
    photos = open_dataset(Source(source=str(data), test_share=0), recipe.data, cache, None, 1)
    make = Pipeline(recipe.augment, size, "squash")
    order = np.random.default_rng(0).permutation(len(photos.train.labels))
    batches = Loader(photos.train, workers=0, pin=False).batches(order, BATCH, make, 0)
    normalized = normalizer_of(photos, recipe, torch.device("cpu"), torch.channels_last)  # as in a trial
    next(batches)
    return _timed(lambda: normalized(next(batches).images), images)


def _timed(one: Any, images: int) -> float:
    begun = time.process_time()
    for _ in range(images // BATCH):
        one()
    return time.process_time() - begun


def enlarge(data: Path, side: int, to: Path) -> None:
    """The photos as JPEGs of quality 95 whose shorter side is `side` px."""
    import cv2

    for path in sorted(data.glob("*/*/*")):
        photo = cv2.imread(str(path))
        scale = side / min(photo.shape[:2])
        target = to / path.relative_to(data).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        resized = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(target), resized, [cv2.IMWRITE_JPEG_QUALITY, 95])


def one_side(side: str, data: Path, size: int, images: int, cache: Path) -> float:
    """Images per CPU-second."""
    took = textbook(data, size, images) if side == "textbook" else ours(data, size, images, SIDES[side], cache)
    return images // BATCH * BATCH / took


def main() -> None:
    import cv2
    import torch

    from cvtune.actor import keep_memory

    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=320, help="per measurement; fewer than the training images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--enlarge", type=int, help="px of the shorter side")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_memory()  # as a trial does
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        data = args.data
        if args.enlarge:
            data = Path(name) / "photos"
            enlarge(args.data, args.enlarge, data)
        for number in range(args.rounds):
            for side in list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]:
                rates[side].append(one_side(side, data, args.image_size, args.images, Path(name) / "cache"))
    for side, measured in rates.items():
        ratios = np.divide(measured, rates["textbook"])
        said = f"{np.median(ratios):.2f} x textbook ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{side:30}{np.median(measured):8.0f} images per CPU-second, {said}")


if __name__ == "__main__":
    main()
