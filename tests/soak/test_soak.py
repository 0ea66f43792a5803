"""The soak itself: every fault is in the published table, and storage that is late is late."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
LOOKING = """
import os, subprocess, sys
from pathlib import Path
root = Path(sys.argv[1])
assert not (root / "new").exists() and os.listdir(root) == []
subprocess.run(["touch", str(root / "new")])
print((root / "new").exists(), [p.name for p in root.glob("*")], end=" ")
(root / "own").write_text("")
print((root / "own").exists(), sorted(os.listdir(root)), end=" ")
import fcntl
try:
    fcntl.flock((root / "own").open(), fcntl.LOCK_EX)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("name", CASES)
def test_every_fault_of_the_soak_is_in_the_published_table(name: str) -> None:
    published = (ROOT / "cvtune" / "docs" / "faults.md").read_text()
    assert f"\n| {CASES[name].fault} | {CASES[name].how} |" in published, name


def test_late_storage_shows_what_others_make_late_and_ones_own_at_once(tmp_path: Path) -> None:
    late = {"PYTHONPATH": str(Path(__file__).with_name("late")), "LATE_LOG": str(tmp_path / "log")}
    root = tmp_path / "storage"
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LOOKING, str(root)],
        env={**os.environ, **late, "LATE_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False [] True ['new', 'own'] No locks available"
    assert set((tmp_path / "log").read_text()) == {"-", "="}
