"""Slurm's compressed forms, as its environment variables hold them."""

import shutil
import subprocess

import pytest

from cvtune.allocation import VARIABLES, Allocation, Grant, allocation, counts, gpu_count, granted, hosts, short

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_NODELIST": "gpu[08-09],big1",
    "SLURM_JOB_CPUS_PER_NODE": "16(x2),64",
}
LISTS = {
    "": (),
    "login": ("login",),
    "nid[001-003]": ("nid001", "nid002", "nid003"),
    "a[1-2,05],b,c7": ("a1", "a2", "a05", "b", "c7"),
    "r[1-2]n[8-10]": ("r1n8", "r1n9", "r1n10", "r2n8", "r2n9", "r2n10"),
    "gpu[9-11]-ib": ("gpu9-ib", "gpu10-ib", "gpu11-ib"),
}


@pytest.mark.parametrize("nodelist", LISTS)
def test_names_are_expanded(nodelist: str) -> None:
    assert hosts(nodelist) == LISTS[nodelist]


@pytest.mark.parametrize("nodelist", [text for text in LISTS if text])
def test_names_are_those_of_scontrol(nodelist: str) -> None:
    if shutil.which("scontrol") is None:
        pytest.skip("Slurm is not installed")
    done = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no configuration of Slurm here, which scontrol needs")
    assert hosts(nodelist) == tuple(done.stdout.split())


@pytest.mark.parametrize(
    ("text", "numbers"), [("4", (4,)), ("4(x2),2", (4, 4, 2)), ("1,72(x3)", (1, 72, 72, 72)), ("many", ()), ("", ())]
)
def test_numbers_per_node_are_expanded(text: str, numbers: tuple[int, ...]) -> None:
    assert counts(text) == numbers


@pytest.mark.parametrize(("text", "number"), [("4", 4), ("a100:4", 4), ("gpu:a100:2,gpu:v100:1", 3), ("some", None)])
def test_gpus_per_node_are_counted(text: str, number: int | None) -> None:
    assert gpu_count(text) == number


def test_outside_of_a_job_there_is_no_allocation() -> None:
    assert allocation({"PATH": "/bin"}) is None


def test_a_job_has_nodes_by_name_and_its_step_does_not_hide_some() -> None:
    job = Allocation("4711", 3, ("gpu08", "gpu09", "big1"))
    assert allocation(JOB) == job
    assert allocation({**JOB, "SLURM_NNODES": "1"}) == job  # a step on one node of it


def test_cpus_are_those_of_the_node() -> None:
    assert granted(JOB, "gpu09").cpus == 16
    assert granted(JOB, "big1").cpus == 64
    assert granted({"SLURM_CPUS_ON_NODE": "3"}, "elsewhere") == Grant(3, None, None)


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ({"SLURM_MEM_PER_NODE": "8000"}, 8000),
        ({"SLURM_MEM_PER_CPU": "500"}, 500 * 16),
        ({"SLURM_MEM_PER_GPU": "1000", "SLURM_GPUS_ON_NODE": "4"}, 4000),
    ],
)
def test_memory_is_per_node_per_cpu_or_per_gpu(memory: dict[str, str], mib: int) -> None:
    assert granted({**JOB, **memory}, "gpu08").memory == mib * 2**20


def test_memory_of_zero_means_all_there_is() -> None:
    assert granted({**JOB, "SLURM_MEM_PER_NODE": "0"}, "gpu08").memory is None


def test_gpus_on_the_node_count_before_those_asked_for() -> None:
    assert granted({**JOB, "SLURM_GPUS_PER_NODE": "a100:4"}, "gpu08").gpus == 4
    assert granted({**JOB, "SLURM_GPUS_PER_NODE": "a100:4", "SLURM_GPUS_ON_NODE": "2"}, "gpu08").gpus == 2


def test_names_lose_their_domain_but_addresses_stay() -> None:
    assert short("gpu08.cluster.example.org") == "gpu08"
    assert short("10.0.0.8") == "10.0.0.8"


def test_no_secret_of_slurm_is_read() -> None:
    assert "SLURM_JWT" not in VARIABLES
