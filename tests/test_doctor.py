"""`cvtune doctor` with real Ray: on this machine, on a cluster of two nodes that is still growing, and where red."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.soak.nodes import AGAIN

RAY = str(Path(sys.executable).with_name("ray"))
NVIDIA_SMI = """#!/bin/sh
if [ "$1" = -L ]; then echo "GPU 0: NVIDIA L4 (UUID: GPU-1)"; else echo "0, GPU-1, NVIDIA L4, 23034, Default, [N/A]"; fi
"""
OURS = ("RAY_", "SLURM", "WANDB_", "CVTUNE_", "CUDA_")


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return subprocess.run(
        [sys.executable, "-m", "cvtune.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**clean, "WANDB_MODE": "offline", **environment},
    )


def shm_bytes() -> int:
    return shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Name of each check -> its state; fails if a line is none."""
    lines = done.stdout.splitlines()
    assert lines and all(re.match(r"(ok|note|skipped|red) +\S", line) for line in lines), done.stdout + done.stderr
    return {line[8:26].strip(): line[:8].strip() for line in lines}


@pytest.mark.slow
def test_a_laptop_is_in_order_and_the_study_is_rehearsed(tmp_path: Path) -> None:
    storage = tmp_path / "studies"
    done = doctor("digits", "--set", "model.width=4", "--storage", str(storage), "--cache", str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = states(done)
    assert {found[name] for name in ("nodes", "versions", "ports", "clocks", "shared storage", "data and code")} == {
        "ok"
    }
    assert {"resources", "GPUs", "temp folder", "token", "W&B", "images per second"} <= found.keys()
    assert "1265 training images, on 1 node" in done.stdout
    assert not storage.exists()  # nothing is left behind


@pytest.mark.slow
def test_a_node_of_the_job_that_does_not_join_is_named_with_exit_code_4() -> None:
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"}
    done = doctor("--wait", "3", **job, SLURM_JOB_CPUS_PER_NODE=f"{os.cpu_count()}(x2)")
    assert done.returncode == 4
    assert states(done)["nodes"] == "red" and states(done)["resources"] == "ok"
    assert "missing: n2. RAY_ADDRESS is not set" in done.stdout
    assert done.stderr == "error: not in order: nodes. The remedy stands in each red line.\n"


def test_an_address_that_nobody_listens_at_is_refused_soon() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = doctor("--wait", "1", RAY_ADDRESS=f"127.0.0.1:{closed.getsockname()[1]}")
    assert done.returncode == 4 and not done.stdout
    assert "refused" in done.stderr and "--wait" in done.stderr and done.stderr.count("\n") == 1


def test_set_without_a_target_is_refused() -> None:
    done = doctor("--set", "optim.lr=0.1")
    assert done.returncode == 2 and "TARGET" in done.stderr


@dataclass
class Cluster:
    """A Ray cluster of this machine, whose nodes belong to a Slurm job of two nodes, each with 2 CPUs and 1 GPU.

    The GPUs exist in an `nvidia-smi` on PATH only, and nothing runs on them.
    """

    environment: dict[str, str]
    secret: str
    nodes: dict[str, subprocess.Popen[bytes]]
    folder: Path

    def start(self, name: str, *where: str, after_s: int = 0) -> None:
        line = ["sh", "-c", f"sleep {after_s}; {AGAIN}", "sh", RAY, "start", "--block", *where, "--num-cpus=2"]
        line += ["--num-gpus=1", "--object-store-memory=100000000", "--memory=500000000"]
        environment = {**os.environ, **self.environment, "SLURMD_NODENAME": name}
        with (self.folder / f"{name}.txt").open("wb") as log:
            self.nodes[name] = subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)

    def stop(self, name: str) -> None:
        os.killpg(self.nodes[name].pid, signal.SIGTERM)
        self.nodes.pop(name).wait(60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    token, secret = tmp_path / "token", secrets.token_hex(32)
    token.touch(0o600)
    token.write_text(secret)
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(NVIDIA_SMI)
    tool.chmod(0o755)
    # Short, since paths of sockets have a limit, and private, as tempfile makes it.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environment = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        environment |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ADDRESS": address}
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        job |= {"SLURM_JOB_CPUS_PER_NODE": "2(x2)", "SLURM_MEM_PER_NODE": "1000"}
        job |= {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0", "PATH": f"{tool.parent}:{os.environ['PATH']}"}
        made = Cluster({**environment, **job}, secret, {}, tmp_path)
        made.start("n1", "--head", "--port", address.rpartition(":")[2], "--include-dashboard=false")
        yield made
        for name in list(made.nodes):
            made.stop(name)


def test_it_loads_no_torch_on_the_driver() -> None:
    code = "import sys, cvtune.doctor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(shm_bytes() < 200e6, reason="shared memory is too small here for two nodes, which would be red")
def test_it_waits_for_a_cluster_that_grows_and_names_a_node_that_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start("n2", "--address", cluster.environment["RAY_ADDRESS"], after_s=15)
    seen = {**cluster.environment, "SLURMD_NODENAME": "n1"}
    done = doctor("--wait", "400", "--storage", str(tmp_path / "studies"), **seen)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = {name for name, state in states(done).items() if state not in ("ok", "skipped")}
    assert not wrong - {"temp folder"}, done.stdout  # the disk may be nearly full
    assert "2: n1, n2 (of the Slurm job)" in done.stdout and "4 CPUs, 2 GPUs, 1.2 GB, as Slurm granted" in done.stdout
    assert "2: NVIDIA L4" in done.stdout
    cluster.stop("n2")
    until = time.monotonic() + 300
    while (done := doctor(**seen)).returncode == 0 and time.monotonic() < until:
        time.sleep(1)
    assert done.returncode == 4 and "1 of 2 nodes joined" in done.stdout and "missing: n2" in done.stdout
    assert cluster.secret not in done.stdout + done.stderr
