"""Which nodes a trial may run on, and how many fit."""

from typing import Any

import pytest

from cvtune.errors import ConfigError
from cvtune.room import fit, matches, selector, told

H100, A100 = "ray.io/accelerator-type=H100", "ray.io/accelerator-type=A100"


def node(labels: str = "", alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources, "Labels": dict(p.split("=") for p in labels.split(",") if p)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        (H100, {"ray.io/accelerator-type": "H100"}),
        ("zone=!eu, kind=in(A100, H100)", {"zone": "!eu", "kind": "in(A100,H100)"}),
        ("kind=!in(A,B)", {"kind": "!in(A,B)"}),
    ],
)
def test_labels_are_read_as_ray_takes_them(text: str | None, found: dict[str, str]) -> None:
    assert selector(text) == found


@pytest.mark.parametrize("text", ["", "H100", "kind=", "=H100", "kind=in(", "kind=in()", "a=1,a=2", "kind=a b", "a=1,"])
def test_what_is_no_label_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(ConfigError, match=r"resources\.label = .*KEY=VALUE"):
        selector(text)


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        (H100, True),
        (A100, False),
        ("ray.io/accelerator-type=!A100", True),
        ("ray.io/accelerator-type=in(A100,H100)", True),
        ("ray.io/accelerator-type=!in(A100,H100)", False),
        ("zone=eu", False),
        ("zone=!eu", True),
    ],
)
def test_a_node_without_a_label_is_any_other_value(wanted: str, there: bool) -> None:
    assert matches(node(H100), selector(wanted)) == there


@pytest.mark.parametrize(
    ("needs", "trials"),
    [
        ({"CPU": 1}, 16),
        ({"CPU": 3}, 5),
        ({"CPU": 1, "GPU": 1}, 2),
        ({"CPU": 1, "GPU": 2}, 1),
        ({"CPU": 1, "GPU": 3}, 0),
        ({"CPU": 1, "GPU": 1 / 3}, 6),
        ({"CPU": 1, "GPU": 0.4}, 4),  # two on each GPU, and what is left of the two makes no fifth
        ({"CPU": 4, "GPU": 0.25}, 4),  # eight shares, cores for four
    ],
)
def test_as_many_trials_fit_as_the_scarcest_allows(needs: dict[str, float], trials: int) -> None:
    assert fit(node(CPU=16, GPU=2), needs, {}) == trials


def test_nodes_that_are_gone_or_have_other_labels_hold_none() -> None:
    assert fit(node(H100, CPU=4), {"CPU": 1}, selector(H100)) == 4
    assert fit(node(A100, CPU=4), {"CPU": 1}, selector(H100)) == 0
    assert fit(node(H100, alive=False, CPU=4), {"CPU": 1}, {}) == 0


def test_labels_are_told_once_each_without_the_nodes_own_ids() -> None:
    nodes = [node(f"{H100},ray.io/node-id=f00"), node(f"{H100},zone=eu"), node()]
    assert told(nodes) == f"{H100}, zone=eu"
    assert told([node()]) == "no labels"
