"""Shared fixtures: real photos, small. A folder `shared/data` beside the checkout is used when it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["CVTUNE_REPORT"] = (
    "0"  # the tests of the report ask for it; elsewhere it would take seconds at each run's end
)
# Several processes test at once. Threads of theirs that wait for one another would take the cores from the rest: small
# networks took 1.5 times as long to train on two busy cores. What a trial may use it sets by itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray adds 15 to the niceness of what trains: beside tests that start processes all the time, trainings would hardly get
# anywhere. None can be above 19.
if hasattr(os, "setpriority"):
    os.setpriority(os.PRIO_PROCESS, 0, 19)
# No test may reach anybody's account at W&B.
os.environ.pop("WANDB_API_KEY", None)
os.environ["NETRC"] = os.devnull

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """24 real photos, uint8 (96, 128, 3): from shared/data/trashnet, else crops of scikit-learn's sample photos."""
    files = sorted((SHARED / "trashnet" / "train").glob("*/*.jpg"))[::60][:24]
    if len(files) == 24:
        return [cv2.resize(cv2.imread(str(f))[..., ::-1], (128, 96), interpolation=cv2.INTER_AREA) for f in files]
    rng = np.random.default_rng(0)
    sources = load_sample_images().images
    crops = []
    for i in range(24):
        image = sources[i % len(sources)]
        y, x = rng.integers(0, image.shape[0] - 96), rng.integers(0, image.shape[1] - 128)
        crops.append(np.ascontiguousarray(image[y : y + 96, x : x + 128]))
    return crops


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, one folder per class and no split: 3 classes x 20 JPEGs of 48 x 64 pixels.

    Crops of scikit-learn's two sample photos and their negatives, so that a small model can tell them apart.
    """
    root = tmp_path_factory.mktemp("photos") / "buildings_and_flowers"
    rng = np.random.default_rng(0)
    china, flower = load_sample_images().images
    for name, image in (("building", china), ("flower", flower), ("negative", 255 - flower)):
        (root / name).mkdir(parents=True)
        for i in range(20):
            y, x = rng.integers(0, image.shape[0] - 96), rng.integers(0, image.shape[1] - 128)
            crop = cv2.resize(image[y : y + 96, x : x + 128], (64, 48), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(root / name / f"{i:03d}.jpg"), crop[..., ::-1])
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch as in a trial with one core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LONGEST = (
    *("test_resume", "test_engine", "test_kinds", "test_workflows", "test_short", "test_online", "test_offline"),
    *("test_ray_job", "test_fetch"),
)
"""The files that take minutes, the longest of either stage first: one that came last would leave processes idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests; the quick ones fill what is left."""
    order = {name: rank for rank, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (order.get(item.path.stem, len(order)), item.path not in slow))
