"""The soak in short: faults of it that no other test has, once each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.soak.cases import CASES, FIFO
from tests.soak.nodes import SETTINGS, one_node
from tests.soak.run import run

SHORT: dict[str, dict[str, Any]] = {
    "study_disk_full": {"count": 1},
    "cache_deleted": {"count": 1, "settings": FIFO},
    "objective_unwell": {},
    "gpu_memory": {},
    "twentieth": {"trials": 100},
    "slow_storage": {"count": 1},
}
FEW = (*SETTINGS, "budget.trials=4")
NODES: dict[str, dict[str, Any]] = {
    "node_lost": {"count": 1, "settings": FEW},
    "head_killed": {"successors": ("h2",), "settings": FEW},
}
NEEDS_ROOT = ("study_disk_full",)
PORT = 6419  # not the soak's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that a study that nothing is done to is run once."""
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def ray(folder: Path) -> Iterator[Mapping[str, str]]:
    with one_node(folder, PORT) as environment:
        yield environment


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_a_fault_in_short(folder: Path, ray: Mapping[str, str], name: str) -> None:
    if name in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("mounts a disk, which needs root")
    run(name, folder, 600, None if CASES[name].alone else ray, **SHORT[name])
    assert (folder / "rows" / f"{name}.json").exists(), "it did not get through in its time"


@pytest.mark.rig
@pytest.mark.parametrize("name", NODES)
def test_a_lost_node_in_short(folder: Path, name: str) -> None:
    """A node is frozen and thawed once its trial runs elsewhere; the head goes, and another host becomes the head."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        assert os.environ.get("CVTUNE_RIG") != "must"
        pytest.skip("hosts of their own need root and iproute2")
    run(name, folder, 600, **NODES[name])
    assert (folder / "rows" / f"{name}.json").exists(), "it did not get through in its time"
