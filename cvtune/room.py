"""Which nodes a trial may run on, and how many trials fit on one: CPUs, GPUs or a share of one, and labels.

Knows Ray's words for a node (`ray.nodes()`), but not Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cvtune.errors import ConfigError

Node = Mapping[str, Any]  # one of `ray.nodes()`: Alive, Resources and Labels

_BETWEEN = re.compile(r",\s*(?![^()]*\))")  # a comma that is not within in(...)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*")
_VALUE = re.compile(r"!?(?:[A-Za-z0-9][A-Za-z0-9._-]*|in\([A-Za-z0-9._-]+(?:\s*,\s*[A-Za-z0-9._-]+)*\))")
_EPSILON = 1e-6  # 1 / 3 is a little less than a third


def selector(text: str | None) -> dict[str, str]:
    """Labels that a node has to have, as Ray takes them: key -> VALUE, !VALUE, in(A,B) or !in(A,B).

    Args:
        text: such as "ray.io/accelerator-type=in(A100,H100),region=!eu"; None: any node will do.

    Raises:
        ConfigError: it is written otherwise.
    """
    found: dict[str, str] = {}
    for part in _BETWEEN.split(text) if text is not None else ():
        key, _, value = (side.strip() for side in part.partition("="))
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value) or key in found:
            raise ConfigError(
                f"resources.label = {text!r}: {part!r} is no label that a node can be chosen by. Write KEY=VALUE, with "
                "VALUE as it is, !VALUE, in(A,B) or !in(A,B), a comma between several keys, such as "
                "'ray.io/accelerator-type=H100'."
            )
        found[key] = value.replace(" ", "")
    return found


def matches(node: Node, labels: Mapping[str, str]) -> bool:
    """Whether a node has the labels, as Ray decides it: a node without a key is any value but that one."""
    return all(_is(node.get("Labels", {}).get(key), wanted) for key, wanted in labels.items())


def fit(node: Node, needs: Mapping[str, float], labels: Mapping[str, str]) -> int:
    """How many trials fit on a node at once; 0 of one that is gone or has other labels.

    Args:
        needs: CPU and, where a trial has any, GPU. A share of a GPU lies within one GPU.
    """
    if not node["Alive"] or not matches(node, labels):
        return 0
    have = node["Resources"]
    counts = [int(have.get(kind, 0) / amount + _EPSILON) for kind, amount in needs.items() if kind != "GPU"]
    gpu = needs.get("GPU", 0)
    if 0 < gpu < 1:
        counts.append(int(have.get("GPU", 0)) * int(1 / gpu + _EPSILON))
    elif gpu:
        counts.append(int(have.get("GPU", 0) / gpu))
    return min(counts)


def told(nodes: Iterable[Node]) -> str:
    """The labels that nodes have, for a sentence; those that name a single node are left out."""
    labels = {f"{k}={v}" for node in nodes for k, v in node.get("Labels", {}).items() if k != "ray.io/node-id"}
    return ", ".join(sorted(labels)) or "no labels"


def _is(value: str | None, wanted: str) -> bool:
    other, wanted = wanted.startswith("!"), wanted.removeprefix("!")
    among = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
    return (value in among) != other
