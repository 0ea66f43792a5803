"""Checkpoints: tensors as safetensors beside a manifest with sizes and hashes, written aside and renamed.

A folder `<root>/<attempt>/checkpoints/<step>` exists whole or not at all, and says by itself whether it is intact.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from cvtune.durable import aside_name, read_json, sync
from cvtune.errors import CvtuneError
from cvtune.printable import first_line

FORMAT = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"


class CheckpointError(CvtuneError):
    """A checkpoint is missing a file, has another size or hash than its manifest says, or is of a newer format."""


def save(folder: Path, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """Write `state` (nested dicts, lists, numbers, strings and tensors) and `numbers` (plain JSON) to `folder`.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left of it then.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _detach(dict(state), tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_name(folder)
    aside.mkdir()
    try:
        try:
            safetensors.torch.save_file(tensors, aside / TENSORS)
        except safetensors.SafetensorError as error:  # what it makes of a full disk
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(aside / TENSORS)) from None
        files = {TENSORS: {"size": (aside / TENSORS).stat().st_size, "blake2b": _digest(aside / TENSORS)}}
        manifest = {"format": FORMAT, "files": files, "numbers": dict(numbers), "state": skeleton}
        (aside / MANIFEST).write_text(json.dumps(manifest))
        for path in (aside / TENSORS, aside / MANIFEST, aside):
            sync(path)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(folder.parent)


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state and the numbers that `save` was given, tensors on the CPU.

    Raises:
        CheckpointError: the folder is not intact.
    """
    manifest = read_json(folder / MANIFEST)
    try:
        return _loaded(folder, manifest or {})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError, safetensors.SafetensorError) as e:
        why = f"{type(e).__name__}: {first_line(e)}"
        raise CheckpointError(f"checkpoint {folder}: is none that cvtune has written ({why}).") from e


def _loaded(folder: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `load` returns; a manifest that cvtune has not written makes it raise anything."""
    if not manifest or manifest.get("format", 0) > FORMAT:
        raise CheckpointError(f"checkpoint {folder}: no readable manifest of format {FORMAT} or lower.")
    path, expected = folder / TENSORS, manifest["files"][TENSORS]  # of the names in a manifest no other is opened
    if not path.is_file() or path.stat().st_size != expected["size"] or _digest(path) != expected["blake2b"]:
        raise CheckpointError(f"checkpoint {folder}: {TENSORS} is missing or differs from what was written.")
    state, numbers = _attach(manifest["state"], safetensors.torch.load_file(path)), manifest["numbers"]
    if not isinstance(state, dict) or not isinstance(numbers, dict):
        raise TypeError("state and numbers have to be objects")
    return state, numbers


def newest(trial: Path) -> Iterator[Path]:
    """Checkpoints of every attempt of a trial, the furthest first. Not yet verified: `load` tells."""
    found = [p for p in trial.glob("*/checkpoints/*") if p.name.isdigit() and (p / MANIFEST).is_file()]
    yield from sorted(found, key=lambda p: (int(p.name), int(p.parent.parent.name)), reverse=True)


def _detach(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`node` as JSON with each tensor replaced by its number. Dicts become pairs: optimizer state has int keys."""
    if isinstance(node, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = node.detach().contiguous().cpu().clone()  # safetensors refuses shared memory
        return {"tensor": name}
    if isinstance(node, Mapping):
        return {"pairs": [[key, _detach(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_detach(value, tensors) for value in node]
    return node


def _attach(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, dict) and "tensor" in node:
        return tensors[node["tensor"]]
    if isinstance(node, dict):
        return {key: _attach(value, tensors) for key, value in node["pairs"]}
    if isinstance(node, list):
        return [_attach(value, tensors) for value in node]
    return node


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
