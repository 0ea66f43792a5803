"""A stand-in of 100,000 photos: how long `cvtune check` takes on it, and what memory.

    PYTHONPATH=. python tests/bench/check_cost.py --images 100000

JPEGs of 160 x 120, each drawn anew (a few soft blobs under grain, so that headers, sizes and digests are those of
photos), a hundredth of them copies of an earlier one, in 100 folders; one run with a warm disk is measured, with all
its processes. `--keep FOLDER` writes the set there and leaves it. Linux only (it reads `/proc`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from meter import measure

CLASSES, COPIES = 100, 0.01
RUN = 1000  # images that a process writes at once


def photo(number: int) -> bytes:
    """A JPEG of 160 x 120; the number is its seed."""
    rng = np.random.default_rng(number)
    small = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 8, (120, 160, 3))
    return cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def write(root: Path, start: int, stop: int) -> None:
    """The images of one run, in class folders; a copy repeats one of the run's earlier images in another class."""
    rng = np.random.default_rng(start)
    for number in range(start, stop):
        shown = int(rng.integers(start, number)) if number > start and rng.random() < COPIES else number
        (root / f"class{number % CLASSES:03d}" / f"{number:06d}.jpg").write_bytes(photo(shown))


def write_all(root: Path, images: int) -> None:
    """The whole set; files that are there are written anew."""
    for k in range(CLASSES):
        (root / f"class{k:03d}").mkdir(parents=True, exist_ok=True)
    starts = range(0, images, RUN)
    with ProcessPoolExecutor() as pool:
        list(pool.map(write, [root] * len(starts), starts, [min(images, start + RUN) for start in starts]))


def main() -> None:
    """Writes the set, reads it once so that the disk is warm, and measures one run of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="folder for the set, which is left there")
    chosen = parser.parse_args()
    root = chosen.keep or Path(tempfile.mkdtemp(prefix="cvtune-check-"))
    log = Path(tempfile.mkdtemp(prefix="cvtune-check-log-")) / "log.txt"
    try:
        if not root.is_dir() or not any(root.iterdir()):
            write_all(root, chosen.images)
        size = sum(len(path.read_bytes()) for path in root.rglob("*.jpg"))  # reads all: the disk is warm
        command = [sys.executable, "-m", "cvtune.cli", "check", str(root), "--cache", str(log.parent)]
        used = measure(command, log, os.environ)
        print(log.read_text())
        print(f"{size / 1e9:.2f} GB, exit code {used.returncode}")
        print(f"{used.wall_s:.1f} s, {used.cpu_s:.1f} CPU-seconds, {used.peak_pss_mb:.0f} MB (PSS) at most")
    finally:
        shutil.rmtree(log.parent)
        if chosen.keep is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
