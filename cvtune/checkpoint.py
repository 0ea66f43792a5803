"""Checkpoints: tensors as safetensors beside a manifest with sizes and hashes, written aside and renamed.

A folder `<root>/<attempt>/checkpoints/<step>` exists whole or not at all, and says by itself whether it is intact. Only
`save` and `load` import torch: the driver, which takes the best weights out of one, does without.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors

from cvtune.durable import aside_name, read_json, sync
from cvtune.errors import CvtuneError
from cvtune.printable import first_line, shortened

if TYPE_CHECKING:
    import torch

FORMAT = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"
PLAIN = (int, float, str, list, dict, type(None))  # what a manifest may hold beside tensors


class CheckpointError(CvtuneError):
    """A checkpoint is missing a file, has another size or hash than its manifest says, or is of a newer format."""


def save(folder: Path, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """Write `state` (nested dicts, lists, numbers, strings and tensors) and `numbers` (plain JSON) to `folder`.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left of it then.
    """
    import safetensors.torch

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


class Packed(NamedTuple):
    """A tensor as its file holds it: safetensors' name of its type, and its bytes."""

    dtype: str
    shape: list[int]
    data: bytes


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state and the numbers that `save` was given, tensors on the CPU.

    Raises:
        CheckpointError: the folder is not intact.
    """
    import safetensors.torch

    return _read(folder, safetensors.torch.load_file)


def load_packed(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `load` returns, each tensor as `Packed`.

    Raises:
        CheckpointError: the folder is not intact.
    """
    unpacked: Any = safetensors.deserialize  # which says nothing of its types
    return _read(folder, lambda path: {name: Packed(**told) for name, told in unpacked(path.read_bytes())})


def evaluated(folder: Path, packed: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights in a trial's checkpoint that are evaluated: the moving average where there is one.

    And what it says of images that are no photos, see `kinds.to_json`; nothing of photos.

    Args:
        folder: of the checkpoint.
        packed: whether each tensor is `Packed`.

    Raises:
        CheckpointError: the folder is not intact, or a loop of the user's own has written it in a form of its own.
    """
    state, _ = (load_packed if packed else load)(folder)
    try:
        state = state.get("run", state)  # of a trial over folds: that of the fold
        weights: dict[str, Any] = state["stepper"]["ema"] or state["model"]
        plain = [name for name, tensor in weights.items() if isinstance(tensor, PLAIN)]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"checkpoint {folder}: its form is that of the study's own train.loop.") from None
    if plain:
        raise CheckpointError(f"checkpoint {folder}: {shortened(str(plain[0]))!r} of its weights is no tensor.")
    return weights, state.get("pixels") or {}


def _read(folder: Path, tensors: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = read_json(folder / MANIFEST)
    try:
        return _loaded(folder, manifest or {}, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError, safetensors.SafetensorError) as e:
        why = f"{type(e).__name__}: {first_line(e)}"
        raise CheckpointError(f"checkpoint {folder}: is none that cvtune has written ({why}).") from e


def _loaded(
    folder: Path, manifest: Mapping[str, Any], tensors: Callable[[Path], Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and numbers; a manifest that cvtune has not written makes it raise anything."""
    if not manifest or manifest.get("format", 0) > FORMAT:
        raise CheckpointError(f"checkpoint {folder}: no readable manifest of format {FORMAT} or lower.")
    path, expected = folder / TENSORS, manifest["files"][TENSORS]  # of the names in a manifest no other is opened
    if not path.is_file() or path.stat().st_size != expected["size"] or _digest(path) != expected["blake2b"]:
        raise CheckpointError(f"checkpoint {folder}: {TENSORS} is missing or differs from what was written.")
    state, numbers = _attach(manifest["state"], tensors(path)), manifest["numbers"]
    if not isinstance(state, dict) or not isinstance(numbers, dict):
        raise TypeError("state and numbers have to be objects")
    return state, numbers


def newest(trial: Path) -> Iterator[Path]:
    """Checkpoints of every attempt of a trial, the furthest first. Not yet verified: `load` tells."""
    found = [p for p in trial.glob("*/checkpoints/*") if p.name.isdigit() and (p / MANIFEST).is_file()]
    yield from sorted(found, key=lambda p: (int(p.name), int(p.parent.parent.name)), reverse=True)


def _detach(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`node` as JSON with each tensor replaced by its number. Dicts become pairs: optimizer state has int keys."""
    import torch

    if isinstance(node, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = node.detach().contiguous().cpu().clone()  # safetensors refuses shared memory
        return {"tensor": name}
    if isinstance(node, Mapping):
        return {"pairs": [[key, _detach(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_detach(value, tensors) for value in node]
    return node


def _attach(node: Any, tensors: Mapping[str, Any]) -> Any:
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
