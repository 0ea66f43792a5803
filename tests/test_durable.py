"""Files appear whole; leases have one owner; the journal survives a torn end; checkpoints prove themselves."""

import json
import multiprocessing
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cvtune import checkpoint, lease
from cvtune.durable import read_json, remove_leftovers, write_whole
from cvtune.errors import CvtuneError, OwnedError
from cvtune.event import Event
from cvtune.history import load
from cvtune.journal import Journal, read
from cvtune.recipe import Recipe
from cvtune.study import for_data


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_whole(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_read_json_of_something_torn_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"a": 1')
    (tmp_path / "b").write_text("[]")
    assert [read_json(tmp_path / n) for n in ("a", "b", "missing")] == [None, None, None]


# --- lease


def _try_to_own(folder: str, answers: "multiprocessing.Queue[str]") -> None:
    try:
        lease.Lease(Path(folder))
        answers.put("owned")
    except OwnedError as error:
        answers.put(str(error))


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    mine = lease.Lease(tmp_path)
    answers: multiprocessing.Queue[str] = multiprocessing.get_context("spawn").Queue()
    other = multiprocessing.get_context("spawn").Process(target=_try_to_own, args=(str(tmp_path), answers))
    other.start()
    said = answers.get(timeout=60)
    other.join()
    assert f"process {os.getpid()}" in said and "cvtune stop" in said
    mine.release()
    again = lease.Lease(tmp_path)
    assert again.term == mine.term + 1
    again.release()


def test_a_dead_or_silent_owner_does_not_hold_the_study(tmp_path: Path) -> None:
    alive = {
        "host": lease.socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "heartbeat": 0.0,
    }
    assert lease.is_alive(alive)
    assert not lease.is_alive({**alive, "started": 1.0})  # the number belongs to another process by now
    assert not lease.is_alive({**alive, "released": True})
    assert not lease.is_alive({**alive, "host": "elsewhere"})
    assert lease.is_alive({**alive, "host": "elsewhere", "heartbeat": lease.time.time()})


def test_who_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    mine = lease.Lease(tmp_path)
    journal = Journal(mine.journal, mine.lost.is_set)
    journal.append("open", {"term": 1})
    mine.lost.set()
    before = mine.journal.read_bytes()
    with pytest.raises(OwnedError, match="taken over"):
        journal.append("epoch", {"trial": "00000", "step": 1})
    mine.release()
    assert mine.journal.read_bytes() == before and not lease.owner(tmp_path)["released"]


def someone_elsewhere(study: Path, **more: object) -> Path:
    path = study / "lease.json"
    known = {"term": 1, "host": "elsewhere", "pid": 1, "heartbeat": time.time(), "beat": 3, "released": False}
    write_whole(path, json.dumps({**known, **more}))
    return path


def test_an_owner_elsewhere_is_watched_for_one_lease_and_then_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its clock says: what counts is whether its heartbeat moves."""
    monkeypatch.setattr(lease, "STALE_S", 2.5)
    someone_elsewhere(tmp_path, heartbeat=time.time() + 3600)
    begun = time.monotonic()
    lease.refuse_if_owned(tmp_path)
    assert time.monotonic() - begun >= 2.5


def test_an_owner_elsewhere_whose_heart_beats_is_named_at_the_first_beat(tmp_path: Path) -> None:
    someone_elsewhere(tmp_path)
    beat = threading.Timer(0.5, lambda: someone_elsewhere(tmp_path, beat=4))
    beat.start()
    with pytest.raises(OwnedError, match="process 1 on elsewhere"):
        lease.refuse_if_owned(tmp_path)
    beat.join()


@pytest.mark.parametrize(("answer", "ended"), [("RUNNING", False), ("COMPLETED", True), ("PENDING", True), ("", True)])
def test_an_owner_in_an_ended_slurm_job_is_dead_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, ended: bool
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\necho {answer}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    someone_elsewhere(tmp_path, slurm_job="17", slurm_restart="0")
    current = lease.owner(tmp_path)
    assert current is not None and lease.is_alive(current) is not ended


def test_a_requeued_slurm_job_takes_its_own_study_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho RUNNING\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    someone_elsewhere(tmp_path, slurm_job="17", slurm_restart="0")
    lease.refuse_if_owned(tmp_path)


# --- journal


def _study_with(tmp_path: Path, events: int) -> Path:
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1})
    proposed = {"role": "search", "label": "", "values": {"optim.lr": 0.1}, "recipe": {}, "waiting": False}
    journal.append("trial", {"trial": "00000", "index": 0, **proposed})
    for step in range(1, events + 1):
        report = {"step": step, "seconds": 1.0, "val_accuracy": float("nan") if step == 2 else step / 10}
        journal.append("epoch", {"trial": "00000", **report, "answer": "go", "acts": [], "reason": None})
    journal.close()
    return tmp_path


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    history = load(_study_with(tmp_path, 3))
    record = history.trials["00000"]
    assert record.recipe == Recipe() and record.steps == 3
    assert [e["val_accuracy"] for e in record.epochs] == [0.1, None, 0.3]
    assert history.best(for_data("digits").settled("val_accuracy"))[1]["step"] == 3
    assert not history.complete


def test_a_message_with_a_name_that_is_no_unicode_is_written_and_read(tmp_path: Path) -> None:
    folder = _study_with(tmp_path, 1)
    file = folder / "journal" / "0001.jsonl"
    journal = Journal(file)
    told = journal.append("end", {"trial": "00000", "reason": "data_error", "message": "caf\udce9.jpg, café"})
    journal.close()
    assert told["message"] == "caf\\udce9.jpg, café" == load(folder).trials["00000"].message
    body = b'{"v":2,"n":9,"t":0,"kind":"end","trial":"00000","reason":"x","message":"\\udce9"'  # an earlier version's
    with file.open("ab") as old:
        old.write(body + f',"crc":"{zlib.crc32(body):08x}"}}\n'.encode())
    assert load(folder).trials["00000"].message == "\udce9"


def test_events_of_several_layouts_come_as_columns() -> None:
    events = [Event({"a": 1, "b": 2.0}), Event({"b": 3.0}), Event({"b": 4.0}), Event({"a": None, "b": 5.0, "c": "x"})]
    assert Event.columns(events, ...) == {
        "a": [1, ..., ..., None],
        "b": [2.0, 3.0, 4.0, 5.0],
        "c": [..., ..., ..., "x"],
    }
    assert "a" not in events[1] and events[1].get("a", 7) == 7 and dict(events[0]) == {"a": 1, "b": 2.0}
    with pytest.raises(KeyError):
        events[1]["a"]
    with pytest.raises(TypeError):
        events[0]["a"] = 2  # type: ignore[index]


def test_lines_are_plain_json_with_number_version_and_checksum(tmp_path: Path) -> None:
    lines = (_study_with(tmp_path, 2) / "journal" / "0001.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["n"] for e in events] == [0, 1, 2, 3]
    assert all(e["v"] == 2 and len(e["crc"]) == 8 for e in events)


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _study_with(tmp_path, 1) / "journal" / "0001.jsonl"
    before, journal, write = path.read_bytes(), Journal(path), os.write

    def nearly_full(handle: int, content: bytes) -> int:
        if len(content) < 30:
            raise OSError(28, "No space left on device")
        return write(handle, content[: len(content) - 20])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", nearly_full)
        with pytest.raises(OSError, match="No space"):
            journal.append("close", {"why": "complete", "ended": None})
    assert path.read_bytes() == before
    journal.append("close", {"why": "complete", "ended": None})
    assert load(tmp_path).complete


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = _study_with(tmp_path, 3) / "journal" / "0001.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    expected = 4 if cut > 1 else 5  # without the newline alone the line is still whole
    assert len(list(read(tmp_path))) == expected


def test_damage_before_the_end_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = _study_with(tmp_path, 3) / "journal" / "0001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":1', b'"step":7'))
    with pytest.raises(CvtuneError, match=r"line 3: damaged"):
        list(read(tmp_path))


def test_terms_follow_one_another(tmp_path: Path) -> None:
    _study_with(tmp_path, 1)
    second = Journal(tmp_path / "journal" / "0002.jsonl")
    second.append("open", {"term": 2})
    second.append("end", {"trial": "00000", "reason": "completed", "message": "", "acts": []})
    second.append("close", {"why": "complete", "ended": None})
    second.close()
    history = load(tmp_path)
    assert len(history.terms) == 2 and history.complete and history.trials["00000"].reason == "completed"


def test_an_owner_that_froze_before_its_first_line_is_passed_over(tmp_path: Path) -> None:
    """Term 2 took the study, froze, and wrote only after term 3 had begun from what term 1 left."""
    _study_with(tmp_path, 2)
    third = Journal(tmp_path / "journal" / "0003.jsonl")
    third.append("open", {"term": 3, "saw_term": 1, "saw": 4})
    thawed = Journal(tmp_path / "journal" / "0002.jsonl")
    thawed.append("open", {"term": 2, "saw_term": 1, "saw": 4})
    thawed.append("end", {"trial": "00000", "reason": "cancelled", "message": "", "acts": []})
    third.append("end", {"trial": "00000", "reason": "completed", "message": "", "acts": []})
    assert load(tmp_path).trials["00000"].reason == "completed"
    assert [term["term"] for term in load(tmp_path).terms] == [1, 3]


# --- checkpoint

STATE = {
    "epoch": 3,
    "model": {"w": torch.arange(6.0).view(2, 3).t()},
    "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "groups": [{"lr": 0.1, "params": [0]}]},
}


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "3", STATE, {"step": 3})
    state, numbers = checkpoint.load(tmp_path / "3")
    assert numbers == {"step": 3} and state["epoch"] == 3
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["optimizer"]["state"][0]["step"] == 4 and state["optimizer"]["groups"] == [{"lr": 0.1, "params": [0]}]


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "manifest"])
def test_a_damaged_checkpoint_is_noticed(tmp_path: Path, harm: str) -> None:
    checkpoint.save(tmp_path / "3", STATE, {})
    tensors = tmp_path / "3" / checkpoint.TENSORS
    content = bytearray(tensors.read_bytes())
    if harm == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif harm == "cut":
        tensors.write_bytes(content[:-4])
    elif harm == "delete":
        tensors.unlink()
    else:
        (tmp_path / "3" / checkpoint.MANIFEST).write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path / "3")):
        checkpoint.load(tmp_path / "3")


def test_what_is_said_of_a_manifest_stays_short(tmp_path: Path) -> None:
    """Found by fuzzing: a name of 10,000 letters came back whole."""
    checkpoint.save(tmp_path / "3", STATE, {})
    manifest = tmp_path / "3" / checkpoint.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state": {"tensor": "x" * 10_000}}))
    with pytest.raises(checkpoint.CheckpointError, match="KeyError") as caught:
        checkpoint.load(tmp_path / "3")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("model", [{"w": 1.5}, {"w": {"data": "x"}}, {"w": [0]}, {"w": None}, "x", 7])
@pytest.mark.parametrize("packed", [False, True])
def test_weights_that_are_no_tensors_are_refused(tmp_path: Path, model: Any, packed: bool) -> None:
    checkpoint.save(tmp_path / "3", {"model": model, "stepper": {"ema": {}}}, {})
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.evaluated(tmp_path / "3", packed)


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_digest", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(tmp_path / "3", STATE, {})
    assert not list(tmp_path.iterdir())


def test_the_furthest_checkpoint_of_all_attempts_comes_first(tmp_path: Path) -> None:
    for attempt, step in ((1, 1), (1, 2), (2, 2), (2, 3)):
        checkpoint.save(tmp_path / str(attempt) / "checkpoints" / str(step), STATE, {"step": step})
    order = [(p.parent.parent.name, p.name) for p in checkpoint.newest(tmp_path)]
    assert order == [("2", "3"), ("2", "2"), ("1", "2"), ("1", "1")]


def test_leftovers_of_killed_processes_go_and_ours_stay(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "other").mkdir()
    dead = [tmp_path / ".lease.json.1.aa.tmp", tmp_path / "tables" / ".trials.parquet.1.bb.tmp"]
    kept = [tmp_path / f".lease.json.{os.getpid()}.aa.tmp", tmp_path / "lease.json", tmp_path / "other" / ".x.1.aa.tmp"]
    for path in (*dead, *kept):
        path.touch()
    remove_leftovers(tmp_path, ".", "tables", "best")
    assert not any(path.exists() for path in dead) and all(path.exists() for path in kept)
