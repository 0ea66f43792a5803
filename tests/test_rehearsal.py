"""The rehearsal of a study on one node: what it measures, and what follows from it."""

from pathlib import Path

import pytest

from cvtune.rehearsal import Rehearsal, data_check, enough_cpus, reached, speed_check
from cvtune.study import Study, for_data

SMALL = {"model.width": 4, "data.batch_size": 32}


def study(**settings: object) -> Study:
    return for_data("digits").set({**SMALL, **settings})


def rehearse(chosen: Study, tmp: Path, roots: tuple[str, ...] = ()) -> dict[str, object]:
    return Rehearsal(chosen.model_dump(mode="json"), str(tmp / "cache"), roots, str(Path.cwd())).run()


@pytest.mark.slow
def test_images_and_speed_are_found(tmp_path: Path) -> None:
    found = rehearse(study(), tmp_path)
    assert found["images"] == 1265 and found["code"] == {} and "error" not in found
    speed = found["speed"]
    assert isinstance(speed, dict) and speed["made"] > 50 and speed["needed"] > 5
    assert data_check({"a": found, "b": found}).state == "ok"
    assert speed_check(study(), {"a": found}).state == "ok" or speed["device"] == "cuda"


def test_missing_weights_are_told(tmp_path: Path) -> None:
    found = rehearse(study(**{"model.pretrained": str(tmp_path / "none.pth")}), tmp_path)
    check = data_check({"n3": found})
    assert check.state == "red" and check.found.startswith("n3: ") and "none.pth" in check.found


def test_code_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    found = rehearse(study(**{"loss.name": "python:nowhere_at_all:loss"}), tmp_path)
    assert "nowhere_at_all" in data_check({"n3": found}).found


def test_other_images_or_code_name_the_node() -> None:
    usual = {"fingerprint": "aa", "images": 9, "code": {"python:m:f": "01"}}
    check = data_check({"n1": usual, "n2": {**usual, "fingerprint": "bb"}, "n3": usual})
    assert (check.state, check.found) == ("red", "n2 has other images than the other nodes")
    check = data_check({"n1": usual, "n2": usual, "n3": {**usual, "code": {"python:m:f": "02"}}})
    assert check.found == "n3 has other code than the other nodes"


@pytest.mark.parametrize(("cpus", "rate"), [(1, 80.0), (2, 100.0), (4, 300.0), (5, 400.0), (9, 400.0)])
def test_on_a_gpu_one_cpu_trains_and_the_others_augment(cpus: int, rate: float) -> None:
    assert reached({"made": 100.0, "needed": 400.0}, cpus) == pytest.approx(rate)


def test_the_cpus_that_suffice_do_and_one_fewer_does_not() -> None:
    speed = {"made": 130.0, "needed": 1000.0, "device": "cuda"}
    enough = enough_cpus(speed)
    few, many = study(**{"resources.cpu": enough - 1}), study(**{"resources.cpu": enough})
    check = speed_check(few, {"g": {"speed": speed}})
    assert check.state == "note" and f"resources.cpu={enough}" in check.remedy
    assert speed_check(many, {"g": {"speed": speed}}).state == "ok"


def test_the_node_that_is_furthest_behind_speaks() -> None:
    fast, slow = ({"made": made, "needed": 1000.0, "device": "cuda"} for made in (900.0, 50.0))
    assert speed_check(study(**{"resources.cpu": 4}), {"f": {"speed": fast}, "s": {"speed": slow}}).found.startswith(
        "s: "
    )
    assert speed_check(study(), {"f": {"error": "no"}}).state == "skipped"
