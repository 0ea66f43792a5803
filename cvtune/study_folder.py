"""The folder of a study: whether it is free for a run, whether it holds the same one, where the study comes from."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cvtune import __version__
from cvtune.durable import read_json
from cvtune.errors import ConfigError
from cvtune.history import History, load
from cvtune.lease import refuse_if_owned
from cvtune.preflight import Prepared
from cvtune.study import Study, read

PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "albumentations",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "optuna",
)
# Where a process that was killed may have left files half written, as patterns; checkpoints are for the sweep.
LEFTOVERS = (".", "journal", "tables", "best", "report", "trials/*", "trials/*/*/media")


def check_folder(study: Study, folder: Path, resume: str) -> tuple[Study, History]:
    """Check that `folder` is free for this study or holds the same one.

    Returns the study, an objective that it leaves open settled as when it began, and what was done so far.
    """
    existing = (folder / "study.json").exists()
    if existing and resume == "never":
        raise ConfigError(
            f"study {study.name!r} exists in {folder.parent}, and --resume never was given. Choose another --name."
        )
    if not existing and resume == "must":
        raise ConfigError(f"there is no study {study.name!r} in {folder.parent} to resume. Check --name and --storage.")
    refuse_if_owned(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent) as probe:
            probe.write(b"cvtune")
    except OSError as error:
        raise ConfigError(
            f"--storage {str(folder.parent)!r} cannot be written ({error.strerror}). Give a folder that can be."
        ) from None
    if not existing:
        return study, History()
    study = _settled_as_begun(study, folder)
    if changes := difference(read(folder / "study.json").definition(), study.definition()):
        raise ConfigError(
            f"study {study.name!r} in {folder.parent} was defined otherwise:\n  "
            + "\n  ".join(changes)
            + "\nResume it with the same definition (budget.*, resources.* and tracking.* may change), or start anew "
            f"with what it has learned: --name NEW --warm-start {study.name}."
        )
    return study, load(folder)


def _settled_as_begun(study: Study, folder: Path) -> Study:
    """A study that left its objective open when it began may do so again; one that named it has to name it."""
    begun = read(folder / "study.json")
    before = (read_json(folder / "study.json") or {}).get("provenance", {})
    # Without this key it was begun when val_accuracy was what a study that said nothing compared by.
    left_open = before.get("objective_left_open", begun.objective == "val_accuracy")
    return study.settled(begun.objective) if left_open else study


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """The values in which two plain JSON trees differ, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = [
            difference(old.get(k), new.get(k), f"{path}.{k}" if path else k) for k in sorted(old.keys() | new.keys())
        ]
        return [line for group in lines for line in group]
    return [] if old == new else [f"{path.removeprefix('recipe.')}: {json.dumps(old)} -> {json.dumps(new)}"]


def check_unchanged(folder: Path, prepared: Prepared) -> None:
    """A resumed study must see the images, the user code and the pretrained weights that it began with."""
    before = (read_json(folder / "study.json") or {}).get("provenance", {})
    for what, key, now in (
        ("the images", "data_fingerprint", prepared.fingerprint),
        ("user code", "code", prepared.code),
        ("the pretrained weights", "weights", prepared.weights),
    ):
        if before and before.get(key, now) != now:  # what an earlier version did not note is not compared
            raise ConfigError(
                f"study {str(folder)!r} cannot be resumed: {what} changed since it began ({before.get(key)} -> {now}). "
                "Restore what it had, or start anew under another --name."
            )


def provenance(prepared: Prepared, nodes: list[dict[str, float]]) -> dict[str, Any]:
    """What one needs to know to repeat a study: versions, commit, data fingerprint, user code, hardware."""
    versions = {"cvtune": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "created": time.time(),
        "command": sys.argv,
        "git_commit": commit or None,
        "versions": versions,
        "objective_left_open": prepared.left_open,
        "data_fingerprint": prepared.fingerprint,
        "task": prepared.task,
        "classes": prepared.classes,
        "images": prepared.images,
        "corrupt": prepared.corrupt,
        "code": prepared.code,
        "weights": prepared.weights,
        **prepared.mappings,
        "nodes": [{k: node[k] for k in ("CPU", "GPU", "memory") if k in node} for node in nodes],
    }
