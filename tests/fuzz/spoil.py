"""What is fed to a reader: sound files of which some bytes, or some values, were changed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e308, 2**31, 2**63, 2**70, float("nan"), float("inf")),
    *("", "x", "0", "../..", "a\0b", "\ud800", "\n", "python:os:system", "x" * 10_000),
    *([], {}, [None], [[]], [0, "x"], {"a": 1}, {"": []}, [["a", 1]]),
)


@st.composite
def spoiled(draw: st.DrawFn, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """The name and the content of one of `files` after one to four changes. Checksums of PNGs are sometimes made right
    again, since otherwise nothing behind them would be looked at."""
    name = draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(("byte", "number", "cut", "drop", "insert", "repeat")))
        if change == "byte":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=2))
        elif change == "number":
            number, order = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from("<>"))
            content[at : at + 4] = struct.pack(f"{order}I", number)
        elif change == "cut":
            del content[at:]
        elif change == "drop":
            del content[at : at + draw(st.integers(1, 16))]
        elif change == "insert":
            content[at:at] = draw(st.binary(max_size=16))
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
    made = bytes(content)
    return name, summed(made) if made[:4] == b"\x89PNG" and draw(st.booleans()) else made


def summed(png: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have."""
    made, at = bytearray(png), 8
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end])) if end + 4 <= len(made) else b""
        at = end + 4
    return bytes(made)


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON value of which one to three values, anywhere in it, were replaced, left out, or given a new neighbor."""
    for _ in range(draw(st.integers(1, 3))):
        tree = _altered(draw, tree)
    return tree


def _altered(draw: st.DrawFn, node: Any) -> Any:
    if not isinstance(node, dict | list) or not node or draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(VALUES))
    keys = sorted(node, key=str) if isinstance(node, dict) else range(len(node))
    key = draw(st.sampled_from(keys))
    made = node.copy()
    change = draw(st.integers(0, 9))
    if change == 0:
        del made[key]
    elif change == 1 and isinstance(made, dict):
        made[draw(st.sampled_from(("x", "", "crc", *map(str, keys))))] = draw(st.sampled_from(VALUES))
    else:
        made[key] = _altered(draw, made[key])
    return made
