"""A stand-in of a million images: how long data sets of that size take to be listed and opened, and what memory.

    uv run python tests/bench/million.py --images 1000000 --kind zip --kind tar --kind parquet --open tar

Images are PNGs of 4 x 4 pixels, each different, in 1000 classes (`two-classes`: in 2) and 10 archives: what is measured
is the cost of each image beside its pixels. Each step runs in a process of its own, whose memory it is. Linux only
(it reads `/proc`).
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import multiprocessing
import pickle
import resource
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
from pyarrow import parquet

from cvtune.data import cache_folder, open_dataset, read_source
from cvtune.data.fingerprint import fingerprint
from cvtune.recipe import Data
from cvtune.sections import Source

CLASSES = 1000
ARCHIVES = 10
KINDS = ("zip", "tar", "webdataset", "parquet", "folder", "two-classes")


def images(start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Class and PNG of each image; the first pixels say its number."""
    for i in range(start, stop):
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[0, 0] = i & 255, i >> 8 & 255, i >> 16
        yield i % CLASSES, cv2.imencode(".png", pixels)[1].tobytes()


def write_zip(path: Path, start: int, stop: int) -> None:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for i, (label, content) in enumerate(images(start, stop), start):
            archive.writestr(f"class{label:04d}/{i:07d}.png", content)


def write_tar(path: Path, start: int, stop: int, labels_beside: bool = False) -> None:
    with tarfile.open(path.with_suffix(".tar"), "w", format=tarfile.USTAR_FORMAT) as archive:
        for i, (label, content) in enumerate(images(start, stop), start):
            folder = "" if labels_beside else f"class{label:04d}/"
            files = {f"{folder}{i:07d}.png": content}
            if labels_beside:
                files[f"{i:07d}.cls"] = str(label).encode()
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, start: int, stop: int) -> None:
    labels, contents = zip(*images(start, stop), strict=True)
    parquet.write_table(
        pa.table({"image": contents, "label": labels}), path.with_suffix(".parquet"), row_group_size=1000
    )


def write_folder(path: Path, start: int, stop: int, classes: int = CLASSES) -> None:
    for i, (label, content) in enumerate(images(start, stop), start):
        file = path.parent / f"class{label % classes:04d}" / f"{i:07d}.png"
        if i < classes:
            file.parent.mkdir()
        file.write_bytes(content)


WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "zip": write_zip,
    "tar": write_tar,
    "webdataset": lambda path, start, stop: write_tar(path, start, stop, labels_beside=True),
    "parquet": write_parquet,
    "folder": write_folder,
    "two-classes": lambda path, start, stop: write_folder(path, start, stop, classes=2),
}


def listing(root: Path, _cache: Path) -> Any:
    """Where all images are."""
    return read_source(Source(source=str(root)))


def contents(root: Path, cache: Path) -> Any:
    """The same, and the digest of all contents: read the first time, then remembered."""
    found = listing(root, cache)
    return found, fingerprint(found, cache, 2)


def opened(root: Path, cache: Path) -> Any:
    """The data set, decoded into a store the first time."""
    return open_dataset(Source(source=str(root)), Data(image_size=16), cache, None, 2)


def on_the_fly(root: Path, cache: Path) -> Any:
    """The data set where nothing may be decoded beforehand; compressed images are kept."""
    return open_dataset(Source(source=str(root)), Data(image_size=16), cache, 40 * 10**6, 2)


def measured(step: Callable[[Path, Path], Any], root: Path, cache: Path, pipe: Any) -> None:
    """Time, CPU time, memory at most and afterwards (beside what the imports take), and the size of its pickle."""
    process = psutil.Process()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = process.memory_full_info().uss
    start, cpu = time.perf_counter(), time.process_time()
    result = step(root, cache)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024
    gc.collect()
    pipe.send((seconds, cpu, peak, process.memory_full_info().uss - before, len(pickle.dumps(result))))


def report(kind: str, name: str, step: Callable[[Path, Path], Any], root: Path, cache: Path) -> None:
    """Measures in a new process and prints a row."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=measured, args=(step, root, cache, theirs))
    process.start()
    theirs.close()
    seconds, cpu, peak, stays, pickled = mine.recv()
    process.join()
    megabytes = " | ".join(f"{value / 1e6:.0f}" for value in (peak, stays, pickled))
    print(f"| {kind} | {name} | {seconds:.1f} | {cpu:.1f} | {megabytes} |", flush=True)


def main() -> None:
    """Writes each data set, measures the steps, and removes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--kind", action="append", choices=KINDS, required=True)
    parser.add_argument("--open", action="append", choices=KINDS, default=[], help="also decode all images")
    chosen = parser.parse_args()
    print("| kind | step | s | CPU-seconds | MB at most | MB that stay | MB pickled |\n|---|---|---|---|---|---|---|")
    for kind in chosen.kind:
        folder = Path(tempfile.mkdtemp(prefix="cvtune-million-"))
        try:
            root, cache = folder / "data", cache_folder(folder / "cache")
            root.mkdir()
            start = time.perf_counter()
            stops = np.linspace(0, chosen.images, ARCHIVES + 1).astype(int).tolist()
            for number, (first, last) in enumerate(itertools.pairwise(stops)):
                WRITERS[kind](root / f"{number:02d}", first, last)
            print(f"(written in {time.perf_counter() - start:.0f} s)", flush=True)
            report(kind, "list", listing, root, cache)
            if kind in chosen.open:
                report(kind, "list, read, decode and store", opened, root, cache)
                report(kind, "open the store", opened, root, cache)
                shutil.rmtree(cache)
                cache.mkdir()
                report(kind, "list, read, decode and keep compressed", on_the_fly, root, cache)
                report(kind, "open what is kept", on_the_fly, root, cache)
            else:
                report(kind, "list and read", contents, root, cache)
                report(kind, "list and remember", contents, root, cache)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
