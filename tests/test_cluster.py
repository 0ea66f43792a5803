"""How Ray is started, what is said when it does not, and what a trial gets of it."""

import os
import subprocess
import sys
from typing import Any

import pytest

from cvtune import cluster
from cvtune.errors import ClusterError, ConfigError
from cvtune.study import for_data

NICENESS = "RAY_worker_niceness"  # read by what Ray starts
NODES: list[dict[str, Any]] = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}, "Labels": {"ray.io/accelerator-type": "H100"}},
    {"Alive": True, "Resources": {"CPU": 64.0}, "Labels": {"zone": "eu"}},
    {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}, "Labels": {"zone": "us"}},
]


LATE = "The current node timed out during startup."
OTHER = "Version mismatch: The cluster was started with:\n    Ray: 2.54.0\n    Python: 3.11.7\n"  # as Ray says it


@pytest.mark.parametrize(
    ("address", "raised", "said", "tries"),
    [
        ("", LATE, "timed out during startup.*tried 3 times.*the same command again is safe", 3),
        ("ray-head:6379", LATE, "timed out during startup.*Unset RAY_ADDRESS", 1),
        ("ray-head:6379", OTHER, r"with: Ray: 2\.54\.0 Python: 3\.11\.7\)\. Install the same Ray and Python", 1),
    ],
)
def test_a_ray_that_does_not_start_is_an_error_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, address: str, raised: str, said: str, tries: int
) -> None:
    tried: list[object] = []

    def fails(**options: object) -> None:
        tried.append(options)
        raise Exception(raised)

    monkeypatch.setattr(cluster.ray, "init", fails)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=said), cluster.cluster():
        pass
    assert len(tried) == tries


SLOW_START = """
import psutil, ray
from cvtune.cluster import cluster
real, raylets = ray._private.services.get_node, []

def running():
    return [child.pid for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]

def late_once(*asked):
    if raylets:
        return real(*asked)
    raylets.extend(running())
    raise Exception("The current node timed out during startup.")

ray._private.services.get_node = late_once
with cluster(say=print):
    now = running()
    assert len(raylets) == len(now) == 1 and raylets != now, (raylets, now)
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
assert not running()
"""


@pytest.mark.slow
def test_a_ray_that_was_too_slow_is_ended_and_started_once_more() -> None:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", SLOW_START], env=alone, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ray did not start (Exception: The current node timed out during startup.); starting it on" in done.stdout


@pytest.mark.parametrize(
    ("settings", "needs", "slots"),
    [
        ({}, {"CPU": 1, "GPU": 1.0}, 2),
        ({"resources.gpu": 0}, {"CPU": 1}, 72),
        ({"resources.gpu": 0.5, "resources.cpu": 3}, {"CPU": 3, "GPU": 0.5}, 2),
        ({"resources.label": "zone=eu"}, {"CPU": 1}, 64),  # no GPU among these nodes
        ({"resources.label": "ray.io/accelerator-type=H100", "resources.gpu": 0}, {"CPU": 1}, 8),
    ],
)
def test_a_trial_gets_what_the_chosen_nodes_have(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], needs: dict[str, float], slots: int
) -> None:
    monkeypatch.setattr(cluster.ray, "nodes", lambda: NODES)
    study = for_data("digits").set(settings)
    assert cluster.trial_resources(study) == needs
    assert cluster.slots_of(needs, study.resources.labels, None)() == slots
    assert cluster.slots_of(needs, study.resources.labels, 2)() == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resources.label": "zone=us"}, r"zone=us': no node has that\. The nodes have ray.*=H100, zone=eu\. Or wait"),
        (
            {"resources.label": "zone=eu", "resources.gpu": 1},
            r"no node with resources\.label = 'zone=eu'.*64 CPUs and 0 G",
        ),
        ({"resources.cpu": 99}, r"resources\.cpu = 99 and resources\.gpu = 1; no node has that.*wait_s"),
    ],
)
def test_what_no_node_has_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(cluster.ray, "nodes", lambda: NODES)
    with pytest.raises(ClusterError, match=said):
        cluster.trial_resources(for_data("digits").set(settings))


def test_ray_that_is_started_here_is_as_nice_as_the_study_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: started.append(os.environ.get(NICENESS, "")))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setenv(NICENESS, "3")
    with cluster.cluster(for_data("digits").set({"resources.niceness": 17}).resources.niceness):
        assert started == ["17"]
    with pytest.raises(ConfigError, match="niceness"):
        for_data("digits").set({"resources.niceness": 20})
