"""Verdicts on facts: what is in order, what is worth a note, what is red and names the node and the value."""

from collections.abc import Mapping
from typing import Any

import pytest

from cvtune import checks
from cvtune.checks import Member, Sight
from cvtune.gpu_checks import gpu_check

VERSIONS = {"python": "3.11.7", "cvtune": "0.1.0 (source aa)", "ray": "2.60.0"}
TOKEN = {"mode": "token", "from": "/home/me/.ray/auth_token", "bits": "0600", "ours": True, "open": False}
TEMP = {"path": "/tmp/x/ray/session_1", "socket_bytes": 80, "ours": True, "open": False, "full": 0.5, "free_bytes": 9e9}
A100 = "NVIDIA A100-SXM4-80GB"
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
    "SLURM_MEM_PER_NODE": "16000",
}


def member(name: str = "n1", offered: Mapping[str, float] | None = None, **facts: Any) -> Member:
    """A node in order: 8 CPUs, 16 GB of which 4 GB are the object store, no GPU."""
    usual = {"CPU": 8.0, "memory": 12e9, "object_store_memory": 4e9}
    plain = {"host": name, "environment": {}, "versions": VERSIONS, "temp": TEMP, "shm_bytes": 8e9, "token": TOKEN}
    return Member(name, {**usual, **(offered or {})}, {**plain, "gpus": {}, **facts})


def sight(*members: Member, job: Mapping[str, str] | None = None, local: bool = False, **driver: Any) -> Sight:
    facts = {"versions": VERSIONS, "token": TOKEN, "environment": dict(job or {}), **driver}
    return Sight(facts, members, {}, local)


def in_job(name: str, **facts: Any) -> Member:
    return member(name, environment={**JOB, "SLURMD_NODENAME": name}, **facts)


# --- nodes


def test_a_whole_job_is_in_order() -> None:
    check = checks.nodes(sight(in_job("n1"), in_job("n2"), job=JOB), 1)
    assert check.state == "ok" and "n1, n2" in check.found


def test_a_missing_node_is_named() -> None:
    check = checks.nodes(sight(in_job("n1"), job=JOB), 300)
    assert check.state == "red" and "1 of 2 nodes joined within 300 s; missing: n2" in check.found


def test_a_node_of_another_job_stands_for_none_of_ours() -> None:
    guest = member("g9", environment={**JOB, "SLURM_JOB_ID": "8", "SLURMD_NODENAME": "g9"})
    assert checks.missing_hosts(sight(job=JOB).job, [in_job("n1"), guest]) == ("n2",)
    assert checks.missing_hosts(sight(job=JOB).job, [in_job("n1"), in_job("n2"), guest]) == ()


def test_nodes_under_other_names_count() -> None:
    assert checks.missing_hosts(sight(job=JOB).job, [member("alias1"), member("alias2")]) == ()


def test_without_names_the_number_counts() -> None:
    nameless = {"SLURM_JOB_NUM_NODES": "3"}
    assert checks.missing_hosts(sight(job=nameless).job, [member("a")]) == ("2 more",)


def test_without_a_job_nothing_is_missing_but_a_silent_node_is_red() -> None:
    there = sight(member("a"))
    assert checks.nodes(there, 0).state == "ok"
    check = checks.nodes(Sight(there.driver, there.members, {"b (10.0.0.2)": "no answer within 60 s"}, False), 0)
    assert check.state == "red" and "b (10.0.0.2) does not answer: no answer within 60 s" in check.found


# --- versions, resources


def test_another_version_is_named_with_both() -> None:
    check = checks.versions(sight(member("a"), member("b", versions={**VERSIONS, "ray": "2.50.0"})))
    assert (check.state, check.found) == ("red", "b: ray 2.50.0 instead of 2.60.0")
    assert checks.versions(sight(member("a"), member("b"))).state == "ok"


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ({"CPU": 64.0}, "n2 offers 64 CPUs, granted are 8"),
        ({"CPU": 4.0}, "n2 offers 4 CPUs, granted are 8"),
        ({"memory": 100e9}, "n2 offers 104.0 GB, granted are 16.8 GB"),
    ],
)
def test_what_slurm_did_not_grant_is_red(offered: dict[str, float], said: str) -> None:
    wrong = Member("n2", {**member().offered, **offered}, in_job("n2").facts)
    check = checks.resources(sight(in_job("n1"), wrong, job=JOB))
    assert (check.state, check.found) == ("red", said)


def test_what_slurm_granted_is_in_order() -> None:
    check = checks.resources(sight(in_job("n1"), in_job("n2"), job=JOB))
    assert (check.state, check.found) == ("ok", "16 CPUs, 0 GPUs, 32.0 GB, as Slurm granted")


def test_gpus_beyond_the_grant_are_red() -> None:
    greedy = member("n1", {"GPU": 8.0}, environment={**JOB, "SLURMD_NODENAME": "n1", "SLURM_GPUS_ON_NODE": "2"})
    assert "n1 offers 8 GPUs, granted are 2" in checks.resources(sight(greedy, job=JOB)).found


def test_a_node_of_another_job_is_judged_by_its_own_grant() -> None:
    own = {"SLURM_JOB_ID": "8", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2", "SLURMD_NODENAME": "g9"}
    assert checks.resources(sight(in_job("n1"), member("g9", {"CPU": 2.0}, environment=own), job=JOB)).state == "ok"
    check = checks.resources(sight(in_job("n1"), member("g9", {"CPU": 4.0}, environment=own), job=JOB))
    assert check.found == "g9 offers 4 CPUs, granted are 2"


def test_a_node_without_environment_is_judged_by_the_drivers_job() -> None:
    check = checks.resources(sight(member("n1", {"CPU": 9.0}), job={**JOB, "SLURM_CPUS_ON_NODE": "9"}))
    assert check.found == "n1 offers 9 CPUs, granted are 8"


def test_a_head_that_is_kept_free_is_a_note() -> None:
    check = checks.resources(sight(Member("n1", {"memory": 1e9}, in_job("n1").facts), in_job("n2"), job=JOB))
    assert check.state == "note" and "n1 offers no CPUs" in check.found


# --- ports, temp folder, shared memory, token, storage, clocks, tracking


def test_a_refused_port_is_red() -> None:
    check = checks.ports(sight(member()), {"from here to GCS": "10.0.0.1:6379: no answer"}, 3)
    assert check.state == "red" and "10.0.0.1:6379: no answer" in check.found and "--port" in check.remedy
    assert checks.ports(sight(member()), {}, 3).state == "ok"


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({}, "ok", "at least 9.0 GB free"),
        ({"socket_bytes": 108}, "red", "108 bytes, 107 are possible"),
        ({"ours": False}, "red", "belongs to another user"),
        ({"full": 0.97}, "red", "disk 97% full"),
        ({"full": 0.9}, "note", "disk 90% full"),
        ({"open": True}, "note", "open to other users"),
    ],
)
def test_the_temp_folder(change: dict[str, Any], state: str, said: str) -> None:
    check = checks.temp(sight(member(temp={**TEMP, **change})))
    assert check.state == state and said in check.found


def test_an_object_store_larger_than_shared_memory_is_red() -> None:
    check = checks.shared_memory(sight(member("a"), member("b", shm_bytes=64e6)))
    assert (check.state, check.found) == ("red", "b: /dev/shm has 0.1 GB, the object store 4.0 GB")
    assert checks.shared_memory(sight(member("a", shm_bytes=64e6), local=True)).state == "note"
    assert checks.shared_memory(sight(member("a", shm_bytes=None))).state == "skipped"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": ""}, "RAY_AUTH_MODE is not 'token' on b"),
        ({"missing": True}, "is missing"),
        ({"ours": False}, "belongs to another user"),
        ({"open": True, "bits": "0644"}, "mode 0644"),
    ],
)
def test_a_token_that_does_not_protect_is_red_on_several_nodes_and_a_note_on_one(
    change: dict[str, Any], said: str
) -> None:
    bad = member("b", token={**TOKEN, **change})
    several, alone = checks.token(sight(member("a"), bad)), checks.token(sight(bad))
    assert several.state == "red" and said in several.found
    assert alone.state == "note" and said in alone.found
    assert checks.token(sight(member("a"), member("b"))).state == "ok"


def test_storage_is_red_for_the_node_that_does_not_see_it() -> None:
    there = sight(member("a"), member("b"))
    check = checks.storage(there, "/shared", {"b": "/shared/x: FileNotFoundError"}, 1.0)
    assert check.state == "red" and check.found.startswith("b: /shared/x")
    assert checks.storage(there, "/shared", {}, 0.2).state == "ok"
    assert checks.storage(there, None, {}, 0.0).state == "note"
    assert checks.storage(sight(member("a")), None, {}, 0.0).state == "skipped"


def test_clocks_may_differ_by_what_the_round_trip_explains() -> None:
    assert checks.clocks({"a": (0.1, 0.01), "b": (9.0, 5.0)}).state == "ok"
    check = checks.clocks({"a": (0.1, 0.01), "b": (-9.0, 0.1)})
    assert (check.state, check.found) == ("red", "b is 9.0 s behind (within 0.1 s)")


def test_tracking_out_of_reach_is_only_a_note() -> None:
    assert checks.tracking("api", "", "").state == "ok"
    assert checks.tracking("api", "api:443: no answer", "online").state == "note"
    assert checks.tracking("api", "api:443: no answer", "offline").state == "skipped"


# --- GPUs


def gpu_node(
    gpus: int, offered: float, cpus: float = 8, mode: str = "Default", mig: int = 0, shown: str | None = None
) -> Member:
    """A node with some A100, the first cut into `mig` slices; `shown` is CUDA_VISIBLE_DEVICES."""
    devices = [{"index": str(i), "uuid": f"GPU-{i}", "name": A100, "compute_mode": mode} for i in range(gpus)]
    slices = {"GPU-0": [f"MIG-{i}" for i in range(mig)]} if mig else {}
    environment = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    facts = {"devices": devices, "slices": slices}
    return member("g", {"GPU": offered, "CPU": cpus}, gpus=facts, environment=environment)


@pytest.mark.parametrize(
    ("node", "share", "state", "said"),
    [
        (gpu_node(4, 4), None, "ok", f"4: {A100}"),
        (gpu_node(4, 2), None, "red", "g: Ray offers 2 GPUs, CUDA shows 4"),
        (gpu_node(4, 2, shown="0,1"), None, "ok", "2: "),
        (gpu_node(4, 2, shown=""), None, "red", "CUDA shows 0"),
        (gpu_node(1, 1, mig=7), None, "red", "CUDA shows 7 (7 MIG slices, not named in CUDA_VISIBLE_DEVICES)"),
        (gpu_node(1, 2, mig=7, shown="MIG-0,MIG-1"), None, "ok", f"2: 7 MIG slices, {A100}"),
        (gpu_node(1, 1, mode="Exclusive_Process"), 0.5, "red", "resources.gpu = 0.5"),
        (gpu_node(1, 1, mode="Exclusive_Process"), 1.0, "note", "Exclusive_Process"),
        (gpu_node(8, 8), None, "note", "1 CPUs per GPU; fewer than 2"),
        (member("g", {"GPU": 1.0}), None, "note", "no nvidia-smi there"),
        (member("g"), None, "skipped", "none"),
    ],
)
def test_gpus(node: Member, share: float | None, state: str, said: str) -> None:
    check = gpu_check(sight(node), share)
    assert check.state == state and said in check.found, check
