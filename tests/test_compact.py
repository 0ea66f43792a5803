"""Copies of closed pieces of a journal: the same events, whatever happens to journal, copy and writer."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench.large import made

from cvtune import compact
from cvtune.epoch_table import _copied
from cvtune.epoch_table import _told as _told_of
from cvtune.errors import CvtuneError
from cvtune.event import Event
from cvtune.journal import Journal, read, terms
from cvtune.results import write_tables

ODD: tuple[dict[str, Any], ...] = (
    {"loss": 0.1, "count": 1, "name": "a", "told": [], "by_class": [0.5, None], "yes": True},
    {"loss": None, "count": 2**70, "name": "caf\udce9", "told": [{"act": "stop"}], "by_class": None, "yes": False},
    {"loss": 1, "count": None, "name": "", "told": [1, 2], "by_class": [0.25], "more": {"x": None}},
    {"loss": -0.0, "count": 3, "by_class": []},
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "SEGMENT", 1000)


def _study(folder: Path, events: int = 40, term: int = 1, **opened: Any) -> Path:
    (folder / "journal").mkdir(exist_ok=True)
    journal = Journal(folder / "journal" / f"{term:04d}.jsonl")
    journal.append("open", {"term": term, **opened})
    for number in range(events):
        journal.append("epoch", {"trial": "00000", "step": number, **ODD[number % len(ODD)]})
    journal.close()
    return folder


def _copies(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("*.arrow"))


def _told(folder: Path) -> list[str]:
    """Every event with the kind of each value: 1 and 1.0 are equal, but not the same."""
    return [repr([(key, value) for key, value in event.items()]) for event in read(folder)]


def _rows(folder: Path) -> int:
    return sum(isinstance(event, compact.Row) for event in read(folder))


def test_copies_hold_the_same_events(tmp_path: Path) -> None:
    lines = _told(_study(tmp_path))
    compact.catch_up(tmp_path)
    assert len(_copies(tmp_path)) >= 4 and 30 < _rows(tmp_path) < 41
    assert _told(tmp_path) == lines
    events = list(read(tmp_path))
    assert events[2].get("more", 7) == 7 and "more" not in events[2] and events[3]["more"] == {"x": None}
    with pytest.raises(KeyError):
        events[2]["more"]
    plain = [Event(dict(event)) for event in events]
    assert Event.columns(events, ...) == Event.columns(plain, ...)


def test_what_is_copied_is_not_copied_again_and_grows_with_the_journal(tmp_path: Path) -> None:
    compact.catch_up(_study(tmp_path, 20))
    before = {path: path.stat().st_mtime_ns for path in _copies(tmp_path)}
    journal = Journal(tmp_path / "journal" / "0001.jsonl")
    for number in range(20):
        journal.append("epoch", {"trial": "00000", "step": 20 + number, **ODD[0]})
    journal.close()
    lines = _told(tmp_path)
    compact.catch_up(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in _copies(tmp_path)}
    assert before.items() <= after.items() and len(after) > len(before) and _told(tmp_path) == lines


def _cut_the_journal(folder: Path) -> None:
    file = folder / "journal" / "0001.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: content.rfind(b"\n", 0, 2500) + 1])


def _other_journal(folder: Path) -> None:
    file = folder / "journal" / "0001.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]  # each is whole, at another place
    file.write_bytes(b"".join(lines))


def _tear(folder: Path) -> None:
    path = _copies(folder)[1]
    path.write_bytes(path.read_bytes()[:-20])


def _empty(folder: Path) -> None:
    _copies(folder)[0].write_bytes(b"")


def _lose_one(folder: Path) -> None:
    _copies(folder)[2].unlink()


def _copy_of_another_place(folder: Path) -> None:
    first, second = _copies(folder)[:2]
    second.write_bytes(first.read_bytes())


@pytest.mark.parametrize("harm", [_cut_the_journal, _other_journal, _tear, _empty, _lose_one, _copy_of_another_place])
def test_a_copy_that_does_not_fit_its_journal_counts_for_nothing(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    compact.catch_up(_study(tmp_path))
    harm(tmp_path)
    told = _told(tmp_path)
    compact.catch_up(tmp_path)  # makes anew what cannot be read
    assert _told(tmp_path) == told
    for path in _copies(tmp_path):
        path.unlink()
    assert _told(tmp_path) == told


@pytest.mark.parametrize("step", ["fsync", "replace", "sync"])
def test_a_writer_that_is_killed_leaves_every_event_once(tmp_path: Path, step: str) -> None:
    lines = _told(_study(tmp_path))
    if (child := os.fork()) == 0:
        import cvtune.durable as durable

        def die(*args: Any) -> None:
            os._exit(9)

        where = {"fsync": durable.os, "replace": Path, "sync": durable}[step]
        setattr(where, step, die)
        compact.catch_up(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(_copies(tmp_path)) == (step == "sync") and _told(tmp_path) == lines
    compact.catch_up(tmp_path)
    assert len(_copies(tmp_path)) >= 4 and _told(tmp_path) == lines


def test_what_a_successor_did_not_see_is_left_out_of_a_copy_too(tmp_path: Path) -> None:
    _study(_study(tmp_path), 20, term=2, saw_term=1, saw=5)
    lines = _told(tmp_path)
    compact.catch_up(tmp_path)
    assert _told(tmp_path) == lines and [len(events) for _, events in terms(tmp_path)] == [5, 21]


def test_a_damaged_line_behind_copies_is_told_by_its_number(tmp_path: Path) -> None:
    file = _study(tmp_path) / "journal" / "0001.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b'"step":38', b'"step":39')
    file.write_bytes(b"".join(lines))
    compact.catch_up(tmp_path)
    assert _copies(tmp_path)
    with pytest.raises(CvtuneError, match=f"line {len(lines) - 1}: damaged"):
        list(read(tmp_path))


def test_tables_are_the_same_with_and_without_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "SEGMENT", 20_000)
    folder = made(6, 9, True, tmp_path)
    assert _copies(folder) and _rows(folder)
    write_tables(folder)
    by_column = {path.name: pq.read_table(path) for path in (folder / "tables").glob("*.parquet")}
    for path in _copies(folder):
        path.unlink()
    write_tables(folder)
    assert by_column == {path.name: pq.read_table(path) for path in (folder / "tables").glob("*.parquet")}


def test_null_is_nan_where_an_event_has_the_key_by_column_as_line_by_line(tmp_path: Path) -> None:
    compact.catch_up(_study(tmp_path))
    rows = [event for event in read(tmp_path) if isinstance(event, compact.Row) and event["kind"] == "epoch"]
    rows = rows[::2] + rows[1::2]  # from one copy to the other and back
    gathered = compact.gathered(rows)
    assert gathered is not None and compact.gathered([*rows, Event({"step": 1})]) is None
    by_column, by_line = _copied(gathered), _told_of([Event(dict(row)) for row in rows])
    for name, kind in (("loss", pa.float64()), ("absent", pa.float64())):
        for null in (None, math.nan):
            assert repr(by_column(name, kind, null).to_pylist()) == repr(by_line(name, kind, null).to_pylist())
    assert by_column("loss", pa.float64(), math.nan).null_count == 0
    assert np.array_equal(gathered.floats("loss"), np.array([row.get("loss") for row in rows], float), equal_nan=True)
    assert np.isnan(gathered.floats("absent")).all()
    assert by_column("yes", pa.bool_(), None).null_count == sum("yes" not in row for row in rows) > 0
