"""The store: decoded once, shared, rebuilt when torn, done without when there is no room."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import pickle
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cvtune.data import Dataset, cache_folder, decode, open_dataset, open_store, read_source
from cvtune.data.build import without
from cvtune.data.cache import allowance, locked
from cvtune.errors import ConfigError, DataError
from cvtune.recipe import Data
from cvtune.sections import Source

SPAWN = multiprocessing.get_context("spawn")
DATA = Data(image_size=32)  # kept at 48, which is the height of the photos


@pytest.fixture
def photos_here(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the photos that a test may spoil, last changed an hour ago."""
    root = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    for path in root.glob("*/*"):
        set_time(path)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return cache_folder(tmp_path / "cache")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that were decoded."""
    seen: list[Path] = []
    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda path: seen.append(path) or real(path))
    yield seen


def set_time(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


def opened(root: Path, cache: Path, limit: int | None = None, **settings: Any) -> Dataset:
    return open_dataset(Source(source=str(root), **settings), DATA, cache, limit, 2)


def pixels(dataset: Dataset) -> bytes:
    parts = (dataset.train, dataset.val, dataset.test)
    return b"".join(np.ascontiguousarray(image).tobytes() for part in parts for image in part.images)


def suffixes(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir())


def spoil(root: Path, count: int) -> None:
    for path in sorted(root.glob("*/*"))[:count]:
        path.write_bytes(path.read_bytes()[:200])
        set_time(path)


def test_images_are_those_of_the_files(photos_here: Path, cache: Path) -> None:
    dataset = opened(photos_here, cache)
    assert dataset.classes == ("building", "flower", "negative")
    assert [len(part.images) for part in (dataset.train, dataset.val, dataset.test)] == [42, 9, 9]
    assert dataset.train.labels.dtype == np.int64
    decoded = {decode.decode(path).tobytes(): path.parent.name for path in photos_here.glob("*/*")}
    for part in (dataset.train, dataset.val, dataset.test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert image.shape == (48, 64, 3)
            assert decoded.pop(image.tobytes()) == dataset.classes[label]
    assert not decoded
    assert dataset.notices == dataset.corrupt == ()
    assert suffixes(cache) == [".fingerprint", ".lock", ".store"]


def test_views_are_read_only_and_end(photos_here: Path, cache: Path) -> None:
    images = opened(photos_here, cache).val.images
    assert not images[0].flags.writeable
    assert not images[0].flags.owndata
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            images[outside]


def test_opened_again_nothing_is_decoded_or_read(photos_here: Path, cache: Path, decodes: list[Path]) -> None:
    first = opened(photos_here, cache)
    before = pixels(first)
    assert len(decodes) == 60
    for path in photos_here.glob("*/*"):  # who reads the files again will notice; who trusts size and time will not
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = opened(photos_here, cache)
    assert len(decodes) == 60
    assert again.fingerprint == first.fingerprint
    assert pixels(again) == before
    assert first.store is not None
    by_path = open_store(first.store)
    assert by_path is not None
    assert pixels(by_path) == before


def test_who_has_opened_a_store_keeps_all_its_images_when_the_cache_is_deleted(photos_here: Path, cache: Path) -> None:
    """Those of parts as well that were not looked at before: a trial scores its first epoch after it has trained."""
    before = pixels(opened(photos_here, cache))
    dataset = opened(photos_here, cache)
    shutil.rmtree(cache)
    assert pixels(dataset) == before


def test_pickles_small_and_reads_the_same(photos_here: Path, cache: Path) -> None:
    dataset = opened(photos_here, cache)
    text = pickle.dumps(dataset)
    assert len(text) < 3000
    assert pixels(pickle.loads(text)) == pixels(dataset)


def test_the_fingerprint_follows_content_not_place(photos_here: Path, cache: Path, tmp_path: Path) -> None:
    first = opened(photos_here, cache)
    moved = Path(shutil.copytree(photos_here, tmp_path / "elsewhere"))
    assert opened(moved, cache).fingerprint == first.fingerprint
    (moved / "flower" / "000.jpg").write_bytes((moved / "flower" / "001.jpg").read_bytes())
    changed = opened(moved, cache)
    assert changed.fingerprint != first.fingerprint
    assert changed.store != first.store
    assert opened(photos_here, cache, split_seed=1).fingerprint != first.fingerprint


def test_a_fresh_change_is_seen_though_size_and_time_agree(photos_here: Path, cache: Path) -> None:
    one, other = sorted(photos_here.glob("flower/*"))[:2]
    size = max(one.stat().st_size, other.stat().st_size)
    contents = [path.read_bytes().ljust(size, b"\0") for path in (one, other)]
    now = time.time_ns()
    prints = []
    for content in contents:
        one.write_bytes(content)
        os.utime(one, ns=(now, now))
        prints.append(opened(photos_here, cache).fingerprint)
    assert prints[0] != prints[1]


def tear(kind: str, store: Path) -> None:
    content = store.read_bytes()
    torn = {
        "missing": None,
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "without its last byte": content[:-1],
        "garbage index": content[:-1000] + bytes(900) + content[-100:],
        "garbage footer": content[:-16] + bytes(16),
        "lost pixels": content[1000:],
        "garbage": np.random.default_rng(0).bytes(len(content)),
    }[kind]
    store.unlink()
    if torn is not None:
        store.write_bytes(torn)


TEARS = "missing,empty,truncated,without its last byte,garbage index,garbage footer,lost pixels,garbage"


@pytest.mark.parametrize("kind", TEARS.split(","))
def test_a_torn_store_is_rebuilt(photos_here: Path, cache: Path, decodes: list[Path], kind: str) -> None:
    dataset = opened(photos_here, cache)
    before = pixels(dataset)
    assert dataset.store is not None
    tear(kind, dataset.store)
    assert open_store(dataset.store) is None
    assert pixels(opened(photos_here, cache)) == before
    assert len(decodes) == 120
    assert pixels(dataset) == before  # who had the old file mapped keeps it


def slowly(root: Path, cache: Path, log: Path, die_after: int | None) -> None:
    """Opens the data in a process of its own; leaves one byte in `log` per decoded image."""
    real = decode.decode
    count = itertools.count()

    def decode_slowly(path: Path) -> np.ndarray:
        if next(count) == die_after:
            os._exit(9)
        with log.open("ab", buffering=0) as file:
            file.write(b".")
        time.sleep(0.01)
        return real(path)

    decode.decode = decode_slowly
    opened(root, cache)


def test_two_processes_at_once_decode_once(photos_here: Path, cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [SPAWN.Process(target=slowly, args=(photos_here, cache, log, None)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.stat().st_size == 60


def test_a_builder_that_dies_leaves_nothing_in_the_way(photos_here: Path, cache: Path, tmp_path: Path) -> None:
    process = SPAWN.Process(target=slowly, args=(photos_here, cache, tmp_path / "log", 30))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert suffixes(cache) == [".fingerprint", ".lock", ".part"]
    assert len(opened(photos_here, cache).train.labels) == 42
    assert suffixes(cache) == [".fingerprint", ".lock", ".store"]


def test_what_a_killed_builder_has_left_is_swept(photos_here: Path, cache: Path) -> None:
    for name in ("dead.part", "alive.part"):
        (cache / name).write_bytes(b"pixels")
    with locked(cache / "alive.lock"):
        opened(photos_here, cache)
    assert [path.name for path in cache.glob("*.part")] == ["alive.part"]


def test_no_room_decodes_at_each_access(photos_here: Path, cache: Path, tmp_path: Path, decodes: list[Path]) -> None:
    stored = pixels(opened(photos_here, cache_folder(tmp_path / "roomy")))
    decodes.clear()
    dataset = opened(photos_here, cache, limit=100_000)
    assert dataset.store is None
    (notice,) = dataset.notices
    assert "0.000553 GB, and 0.0001 GB are allowed" in notice
    assert "resources.cache_gb" in notice and "--cache DIR" in notice
    assert len(decodes) == 60
    assert pixels(dataset) == stored
    assert not dataset.train.images[0].flags.writeable
    decodes.clear()
    assert opened(photos_here, cache, limit=100_000).notices == dataset.notices
    assert not decodes  # which images are corrupt is remembered
    assert pixels(pickle.loads(pickle.dumps(dataset))) == stored
    assert opened(photos_here, cache, limit=10**6).store is not None
    assert suffixes(cache) == [".fingerprint", ".lock", ".store"]


def test_a_file_that_may_not_grow_falls_back(photos_here: Path, cache: Path, tmp_path: Path) -> None:
    stored = pixels(opened(photos_here, cache_folder(tmp_path / "roomy")))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        dataset = opened(photos_here, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert pixels(dataset) == stored
    assert "disk or quota" in dataset.notices[0]
    assert suffixes(cache) == [".fingerprint", ".kept", ".kept-index", ".lock", ".scan"]
    assert next(cache.glob("*.kept")).stat().st_size <= 50_000  # half of what may be is left free
    assert opened(photos_here, cache).store is None  # not tried again at each trial
    next(cache.glob("*.scan")).unlink()
    assert opened(photos_here, cache).store is not None
    assert suffixes(cache) == [".fingerprint", ".lock", ".store"]


@pytest.mark.parametrize("room", [0, 300_000, 553_000])
def test_a_full_disk_falls_back(photos_here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    real = os.write

    def full(descriptor: int, content: Any) -> int:
        nonlocal room
        if len(content) <= 200:
            return real(descriptor, content)
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, content[:room])  # the last write before the end is a short one
        room -= written
        return written

    monkeypatch.setattr("cvtune.data.store.os.write", full)
    dataset = opened(photos_here, cache)
    assert dataset.store is None
    assert "disk or quota" in dataset.notices[0]
    assert len(pixels(dataset)) == 60 * 48 * 64 * 3
    assert suffixes(cache) == [".fingerprint", ".lock", ".scan"]


def test_few_corrupt_images_are_skipped(photos_here: Path, cache: Path) -> None:
    (photos_here / "flower" / "gone.jpg").symlink_to("nowhere.jpg")
    spoil(photos_here, 2)
    for limit in (None, 1000):
        dataset = opened(photos_here, cache, limit, max_corrupt=0.1)
        assert len(dataset.corrupt) == 3
        assert any(text.startswith("building/000.jpg: cannot be decoded (") for text in dataset.corrupt)
        assert len(dataset.train.labels) + len(dataset.val.labels) + len(dataset.test.labels) == 58
        assert dataset.notices[0].startswith(
            "3 images cannot be used and are skipped (study.json lists them), for example building/00"
        )
        for part in (dataset.train, dataset.val, dataset.test):
            assert len(part.images) == len(part.labels) == len(list(part.images))
        with pytest.raises(DataError, match=r"data.max_corrupt allows 1.0%"):
            opened(photos_here, cache, limit)
        for path in cache.glob("*.store"):
            path.unlink()


def test_many_corrupt_images_are_refused(photos_here: Path, cache: Path) -> None:
    spoil(photos_here, 12)
    with pytest.raises(DataError, match=r"12 of 60 images \(20.0%\).*allows 10.0%.*and 2 more") as caught:
        opened(photos_here, cache, max_corrupt=0.1)
    assert str(caught.value).count(".jpg") == 10
    assert suffixes(cache) == [".fingerprint", ".lock"]


def test_a_class_of_corrupt_images_only(photos_here: Path, cache: Path) -> None:
    spoil(photos_here, 20)
    with pytest.raises(DataError, match="class 'building' has only images in train that cannot be decoded"):
        opened(photos_here, cache, max_corrupt=0.5)
    assert suffixes(cache) == [".fingerprint", ".lock"]


def test_without_drops_the_right_ones() -> None:
    listing = read_source(Source(source="digits"))
    parts = without(listing, {0, len(listing.parts["train"].labels)})
    assert np.array_equal(parts["train"].labels, listing.parts["train"].labels[1:])
    assert np.array_equal(parts["val"].items, np.stack(listing.parts["val"].items)[1:])
    assert len(parts["test"].labels) == len(listing.parts["test"].labels)


def growth(images: Any, total: int, pipe: Any) -> None:
    process = psutil.Process()
    before = process.memory_full_info().uss
    summed = sum(int(image.sum(dtype=np.int64)) for image in images)
    pipe.send((process.memory_full_info().uss - before, summed, total))


def test_a_second_reader_shares_the_memory(tmp_path: Path, cache: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (200, 256, 256, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", x=x, y=np.arange(200) % 2)
    dataset = open_dataset(Source(source=str(tmp_path / "large.npz")), Data(image_size=256), cache, None, 2)
    images = dataset.train.images
    here = sum(int(image.sum(dtype=np.int64)) for image in images)
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=growth, args=(images, x.nbytes, theirs))
    process.start()
    assert mine.poll(60)
    grown, there, total = mine.recv()
    process.join()
    assert there == here
    assert grown < 0.2 * total


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (cache_folder(tmp_path / "a" / "b").stat().st_mode & 0o777) == 0o700
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    assert cache_folder(None) == tmp_path / "job" / "cvtune"
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder(None).name.startswith("cvtune-")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/cache: cannot be written .* --cache DIR"):
        cache_folder(tmp_path / "file" / "cache")


def test_allowance(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert allowance(tmp_path, 1000) == 1000
    assert 0.4 * free < allowance(tmp_path, None) < 0.6 * free
    assert allowance(tmp_path, 10**18) < free


def test_a_lock_is_waited_for_but_not_forever(tmp_path: Path) -> None:
    again = locked(tmp_path / "lock", longest_wait_s=0.1)
    with locked(tmp_path / "lock"), pytest.raises(DataError, match=r"another process has .*--cache DIR"), again:
        pass
    with locked(tmp_path / "lock"):
        pass
