"""Copies of closed pieces of a journal by column: the same events, read some ten times faster.

Once a term's file has grown by another SEGMENT bytes, its owner writes that piece (whole lines, checksums verified) as
`journal/<term>.<first byte>.arrow` beside it. The journal stays the only source of truth: a copy says which bytes it
stands for, by their number and SHA-256, and ends with the SHA-256 of all before it. Where it is missing, damaged or of
other bytes the lines are read instead.
Nothing is ever read twice: a copy takes the place of its lines, and ends where the next line begins.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvtune.durable import write_whole
from cvtune.event import FORMAT as JOURNAL
from cvtune.event import Event, decoded, parse

FORMATS = {"format": 2, "journal": JOURNAL}  # 1, of development versions, had no hash of itself: made anew
SEGMENT = 8 * 2**20  # bytes of the journal; some 5,000 reports
PLAIN = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
LAYOUT = "#layout"  # a column: which keys an event has
_HASH = hashlib.sha256().digest_size
JSON = b"json"  # of a column: its values are JSON texts


class _Lazy(dict[str, Any]):
    """A dict that makes what is asked for the first time."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    def __missing__(self, key: str) -> Any:
        self[key] = made = self._make(key)
        return made


class Block:
    """The events of one copy by column.

    Attributes:
        objects: the values of a key as Python has them, one for each event; made when first asked for.
        floats: the numbers of a key, float64 (N,), NaN where an event has null or lacks it; likewise.
        layouts: the keys that an event may have, each a mapping to its place.
        layout: which of them each event has, int32 (N,).
    """

    def __init__(self, batch: pa.RecordBatch, layouts: Sequence[Sequence[str]]) -> None:
        self._batch = batch
        self._arrays: dict[str, pa.Array] = {}
        self.objects = _Lazy(self._objects)
        self.floats = _Lazy(self._floats)
        self.layouts = [{name: place for place, name in enumerate(names)} for names in layouts]
        self.layout = np.frombuffer(
            batch.column(LAYOUT).buffers()[1], np.int32, batch.num_rows
        )  # no pandas, as to_numpy

    def _objects(self, name: str) -> list[Any]:
        values: list[Any] = self._batch.column(name).to_pylist()
        return values if self.is_plain(name) else [None if text is None else decoded(text) for text in values]

    def _floats(self, name: str) -> np.ndarray:
        values = self.array(name, pa.float64())
        missing = np.frombuffer(values.is_null().cast(pa.int8()).buffers()[1], np.int8, len(values)) != 0
        return np.where(missing, np.nan, np.frombuffer(values.buffers()[1], np.float64, len(values)))

    def is_plain(self, name: str) -> bool:
        """Whether a column holds the values themselves, not JSON."""
        return (self._batch.schema.field(name).metadata or {}).get(b"as") != JSON

    def array(self, name: str, kind: pa.DataType) -> pa.Array:
        """The values of a key as Arrow has them; null where an event lacks it."""
        if name not in self._arrays:
            if name not in self._batch.schema.names:
                self._arrays[name] = pa.nulls(self._batch.num_rows, kind)
            elif self.is_plain(name):
                self._arrays[name] = self._batch.column(name).cast(kind)
            else:
                self._arrays[name] = pa.array(self.objects[name], kind)
        return self._arrays[name]

    def events(self) -> list[Event]:
        return [Row(self, number, self.layouts[layout]) for number, layout in enumerate(self.layout.tolist())]


class Row(Event):
    """An event of a Block."""

    __slots__ = ("block", "number")

    def __init__(self, block: Block, number: int, places: Mapping[str, int]) -> None:
        self.block, self.number, self._places = block, number, places

    def __getitem__(self, key: str) -> Any:
        if key in self._places:
            return self.block.objects[key][self.number]
        raise KeyError(key)  # though an event of another layout may have it

    def get(self, key: str, default: Any = None) -> Any:
        return self.block.objects[key][self.number] if key in self._places else default

    @property
    def _values(self) -> tuple[Any, ...]:  # type: ignore[override]
        return tuple(self[name] for name in self._places)


class Gathered:
    """Many events of copies by column, in their order, none of which becomes a Python object."""

    def __init__(self, rows: Sequence[Row]) -> None:
        blocks = list(dict.fromkeys(row.block for row in rows))
        place = {block: number for number, block in enumerate(blocks)}
        of = np.array([place[row.block] for row in rows])
        numbers = np.array([row.number for row in rows])
        self._takes = [(block, numbers[of == place[block]]) for block in blocks]
        self._order = np.argsort(np.argsort(of, kind="stable"))  # from block by block to the order of the rows

    def column(self, name: str, kind: pa.DataType) -> pa.Array:
        """The values of a key; null where an event has null or lacks it."""
        pieces = [block.array(name, kind).take(pa.array(numbers)) for block, numbers in self._takes]
        return pa.concat_arrays(pieces).take(pa.array(self._order))

    def floats(self, name: str) -> np.ndarray:
        """The numbers of a key, float64 (N,); NaN where an event has null or lacks it."""
        return np.concatenate([block.floats[name][numbers] for block, numbers in self._takes])[self._order]

    def has(self, name: str) -> pa.Array:
        """Which events have a key."""
        found = [np.array([name in keys for keys in block.layouts])[block.layout[n]] for block, n in self._takes]
        return pa.array(np.concatenate(found)[self._order])


def gathered(events: Sequence[Mapping[str, Any]]) -> Gathered | None:
    """The events by column; None where one of them was not read from a copy, or there is none."""
    rows = [event for event in events if isinstance(event, Row)]
    return Gathered(rows) if rows and len(rows) == len(events) else None


class Copy(NamedTuple):
    """A copy that stands for the bytes `start` to `end` of its journal file."""

    start: int
    end: int
    block: Block


def copies(file: Path) -> Iterator[Copy]:
    """The copies that may be read instead of parts of a journal file; in order, none overlaps another."""
    done = 0
    with file.open("rb") as lines:
        for path in sorted(file.parent.glob(f"{file.stem}.*.arrow")):
            place, about = path.stem.rpartition(".")[2], _about(path)
            if about is None or not place.isdecimal() or (start := int(place)) < done:
                continue
            lines.seek(start)
            if hashlib.sha256(lines.read(about["size"])).hexdigest() != about["sha256"]:
                continue
            if (block := _block(path, about["layouts"])) is not None:
                done = start + about["size"]
                yield Copy(start, done, block)


def catch_up(study: Path) -> None:
    """Copy what a study's journal has grown by. For its owner alone.

    Raises:
        OSError: the disk is full; nothing is lost by it.
    """
    for file in sorted((study / "journal").glob("*.jsonl")):
        done, size = 0, file.stat().st_size
        with file.open("rb") as lines:
            while size - done >= SEGMENT:
                path = file.with_name(f"{file.stem}.{done:015d}.arrow")
                if (about := _about(path)) is None:
                    lines.seek(done)
                    about = _copy(lines.read(SEGMENT), path)
                if about is None:  # who reads the lines will say what is wrong with them
                    break
                done += about["size"]


def _copy(piece: bytes, path: Path) -> dict[str, Any] | None:
    """Write the copy of the whole lines in `piece`; returns what it says of itself, None where a line is damaged."""
    piece = piece[: piece.rfind(b"\n") + 1]
    events = [event for line in piece.splitlines() if (event := parse(line)) is not None and event["v"] == JOURNAL]
    if not events or len(events) != piece.count(b"\n"):
        return None
    layouts: dict[tuple[str, ...], int] = {}
    layout = [layouts.setdefault(tuple(event), len(layouts)) for event in events]
    about = {"size": len(piece), "sha256": hashlib.sha256(piece).hexdigest(), "layouts": list(layouts), **FORMATS}
    write_whole(path, _stored(Event.columns(events), layout, about))
    return about


def _about(path: Path) -> dict[str, Any] | None:
    """What a copy says of itself; None where there is none of this format."""
    try:
        with pa.OSFile(str(path)) as file:
            about: dict[str, Any] = json.loads(pa.ipc.open_stream(file).schema.metadata[b"copy"])
            is_ours = about.items() >= FORMATS.items() and about["size"] > 0 and about["sha256"] and about["layouts"]
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return about if is_ours else None


def _block(path: Path, layouts: Sequence[Sequence[str]]) -> Block | None:
    """The events of a copy; None if it is damaged.

    It is read whole, not mapped: on a network file system a deleted file would end the process.
    """
    try:
        content = path.read_bytes()
        made, told = content[:-_HASH], content[-_HASH:]
        if hashlib.sha256(made).digest() != told:
            return None
        batch = pa.ipc.open_stream(made).read_next_batch()
        batch.validate(full=True)  # whoever wrote other bytes could write their hash as well
        block = Block(batch, layouts)
        return block if block.layout.min() >= 0 and block.layout.max() < len(layouts) else None
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, AttributeError):
        return None


def _stored(columns: Mapping[str, list[Any]], layout: list[int], about: Mapping[str, Any]) -> bytes:
    """The file of a copy: a record batch of the columns and, first, each event's layout."""
    made = {name: _column(values) for name, values in columns.items()}
    fields = [
        pa.field(name, array.type, metadata={"as": JSON} if text else None) for name, (array, text) in made.items()
    ]
    schema = pa.schema([pa.field(LAYOUT, pa.int32()), *fields], metadata={"copy": json.dumps(about)})
    arrays = [pa.array(layout, pa.int32()), *(array for array, _ in made.values())]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    stream = bytes(sink.getvalue())
    return stream + hashlib.sha256(stream).digest()


def _column(values: Sequence[Any]) -> tuple[pa.Array, bool]:
    """The values of a key, and whether as JSON: of several kinds, or of one that Arrow has in no simple way."""
    kinds = {type(value) for value in values} - {type(None)}
    try:
        if len(kinds) == 1 and (kind := PLAIN.get(next(iter(kinds)))) is not None:
            return pa.array(values, kind), False
        if kinds == {list} and all(_is_numbers(value) for value in values if value is not None):
            return pa.array(values, pa.list_(pa.float64())), False
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):  # too large a number, half a surrogate pair
        pass
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.array(texts, pa.string()), True


def _is_numbers(values: list[Any]) -> bool:
    return bool(values) and all(value is None or (type(value) is float and not math.isnan(value)) for value in values)
