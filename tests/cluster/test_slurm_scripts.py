"""The Slurm scripts without Slurm: stand-ins for its commands, for Ray and for cvtune write down how they are called.

What they wrote is compared with `tests/golden/slurm/`; CVTUNE_UPDATE_GOLDEN=1 writes those files anew. The real thing
is in test_slurm.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "slurm"
SCRIPTS = sorted((ROOT / "cluster").glob("*.sbatch"))

LOG = 'echo "$(basename "$0")${SLURMD_NODENAME:+@$SLURMD_NODENAME}: $*" >>"$FAKE_LOG"\n'
FAKES = {
    "srun": """
        for word in "$@"; do case $word in --nodelist=*) export SLURMD_NODENAME=${word#*=} ;; esac; done
        while [ "$1" != bash ]; do shift; done
        export SLURM_TMPDIR=$SLURM_TMPDIR/$SLURMD_NODENAME
        mkdir "$SLURM_TMPDIR"
        "$@" & child=$!
        echo $child >>"$FAKE_LOG.steps"
        wait $child""",
    "scontrol": """
        case "$*" in
            *hostnames*) printf 'n1\\nn2\\n' ;;
            *"show node"*) echo "NodeName=n1 NodeAddr=127.0.0.1 Port=6818" ;;
        esac""",
    "scancel": """
        xargs kill -TERM <"$FAKE_LOG.steps\"""",
    "ray": """
        for word in "$@"; do case $word in --temp-dir=*) temp=${word#*=} ;; esac; done
        case "$*" in *--head*) echo 127.0.0.1:1234 >"$temp/ray_current_cluster" ;; esac
        trap 'exit 143' TERM
        for i in $(seq 600); do sleep 0.1; done""",
    "cvtune": """
        [ "$1" != doctor ] || exit "${FAKE_DOCTOR:-0}"
        echo "RAY_ADDRESS=$RAY_ADDRESS RAY_AUTH_MODE=$RAY_AUTH_MODE CVTUNE_STORAGE=$CVTUNE_STORAGE" >>"$FAKE_LOG"
        echo "token: $(stat -c %a "$RAY_AUTH_TOKEN_PATH"), $(wc -c <"$RAY_AUTH_TOKEN_PATH") characters" >>"$FAKE_LOG"
        trap 'echo "cvtune got USR1" >>"$FAKE_LOG"; exit 75' USR1
        trap 'echo "cvtune got TERM" >>"$FAKE_LOG"; exit 75' TERM
        touch "$FAKE_LOG.running"
        for i in $(seq "${FAKE_TENTHS:-1}"); do sleep 0.1; done
        exit "${FAKE_CODE:-0}\"""",
}
JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURM_MEM_PER_CPU": "1000",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURMD_NODENAME": "n1",
}


class Stand:
    """A machine on which Slurm's commands are stand-ins."""

    def __init__(self, folder: Path, temp: Path) -> None:
        self.folder, self.temp, self.log = folder, temp, folder / "log"
        tools = folder / "tools" / "bin"
        tools.mkdir(parents=True)
        for name, body in FAKES.items():
            (tools / name).write_text("#!/bin/bash\n" + LOG + body + "\n")
            (tools / name).chmod(0o755)
        (tools / "python").symlink_to(sys.executable)

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RAY", "CVTUNE"))}
        own = {"CVTUNE_ENV": str(self.folder / "tools"), "CVTUNE_STORAGE": str(self.folder / "studies")}
        own |= {
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_TMPDIR": str(self.temp),
            "FAKE_LOG": str(self.log),
        }
        path = f"{self.folder / 'tools' / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(ROOT / "cluster" / script), *arguments],
            env={**kept, **own, "PATH": path, **JOB, **variables},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *arguments: str, send: int | None = None, **variables: str) -> tuple[int, str]:
        """Run a script to its end, with a signal once cvtune runs; returns exit code and output."""
        script_ = self.start(script, *arguments, **variables)
        if send is not None:
            until = time.monotonic() + 120
            while not Path(f"{self.log}.running").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            script_.send_signal(send)
        output, _ = script_.communicate(timeout=300)
        return script_.returncode, output

    def calls(self) -> str:
        """What was called, without what differs between machines."""
        text = self.log.read_text().replace(str(self.folder), "FOLDER").replace(str(self.temp), "TEMP")
        asked = re.compile(r"scontrol@\w+: (--oneliner )?show")
        return "".join(line for line in text.splitlines(keepends=True) if not asked.match(line))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:  # the scripts take no long one
        yield Stand(tmp_path, Path(short))


def golden(name: str, text: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("CVTUNE_UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def by_process(calls: str) -> str:
    """Calls of nodes started at the same time may come in any order."""
    return "".join(sorted(calls.splitlines(keepends=True)))


def test_several_nodes(stand: Stand) -> None:
    code, output = stand.run("slurm.sbatch", "w.py", "--set", "a=b c")
    assert code == 0, output
    golden("several-nodes", by_process(stand.calls()))
    assert not list(stand.folder.glob("studies/.slurm/77.0/*")) and not list(stand.temp.glob("**/cvtune-*"))


def test_one_node(stand: Stand) -> None:
    code, output = stand.run("slurm-one-node.sbatch", "w.py", "--set", "a=b c")
    assert code == 0, output
    golden("one-node", stand.calls())
    assert not list(stand.temp.glob("**/cvtune-*"))


def test_an_element_of_an_array_runs_its_line(stand: Stand) -> None:
    (stand.folder / "studies.txt").write_text("one.py\ntwo.py --name 'a b'\n")
    code, output = stand.run("slurm-array.sbatch", "studies.txt", SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="70")
    assert code == 0, output
    assert "cvtune@n1: run two.py --name a b\n" in stand.calls()
    code, output = stand.run("slurm-array.sbatch", "studies.txt", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_JOB_ID="70")
    assert code == 2 and "studies.txt has no line 3" in output


def test_no_argument_is_run_as_a_command(stand: Stand) -> None:
    """Files and settings reach cvtune as they are. An array's line is split as a shell does, and no further."""
    odd = ("$(touch ran)", "`touch ran`", "a;touch ran", "| touch ran", "-rf", "'", '"', "*", "a\nb")
    odd += ("<script>", "=cmd|' /C calc'!A0")
    for script in ("slurm-one-node.sbatch", "slurm.sbatch"):
        for file in ("w.py", "$(touch ran) '\"`touch ran`;touch ran.py"):
            code, output = stand.run(script, file, "--set", *odd)
            assert code == 0, output
            assert f"cvtune@n1: run {file} --set {' '.join(odd)}\n" in stand.calls()
    (stand.folder / "studies.txt").write_text("one.py '$(touch ran)' `touch\\ ran` '|touch ran'\n")
    code, output = stand.run("slurm-array.sbatch", "studies.txt", SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="70")
    assert code == 0, output
    assert "cvtune@n1: run one.py $(touch ran) `touch ran` |touch ran\n" in stand.calls()
    assert not list(stand.folder.rglob("ran")) and not Path("ran").exists()


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm-one-node.sbatch"])
def test_a_jobs_secrets_are_in_no_file_but_the_tokens_own(stand: Stand, script: str) -> None:
    """The token of its Ray, which is gone at the end, and a key that the environment holds for the driver."""
    key = "local-" + "c0ffee" * 6
    job = stand.start(script, "w.py", FAKE_TENTHS="100", WANDB_API_KEY=key)
    until = time.monotonic() + 120
    while not Path(f"{stand.log}.running").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    found = [path for root in (stand.folder, stand.temp) for path in root.rglob("token")]
    (place,) = found
    token = place.read_text()
    assert len(token) == 64 and place.stat().st_mode & 0o077 == 0

    def hold(secret: str) -> list[Path]:
        files = [path for root in (stand.folder, stand.temp) for path in root.rglob("*") if path.is_file()]
        return [path for path in files if "tools" not in path.parts and secret.encode() in path.read_bytes()]

    assert hold(token) == [place] and not hold(key)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=300)
    assert token not in output and key not in output
    assert not hold(token) and not hold(key)


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm-one-node.sbatch"])
def test_only_the_time_limit_queues_a_job_again(stand: Stand, script: str) -> None:
    code, output = stand.run(script, "w.py", send=signal.SIGUSR1, FAKE_TENTHS="100")
    assert code == 0, output
    assert "cvtune got USR1" in stand.calls() and stand.calls().splitlines()[-1] == "scontrol@n1: requeue 77"
    assert "queued again, 1 of at most 20 times" in output
    assert not list(stand.folder.glob("studies/.slurm/77.0/*"))


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm-one-node.sbatch"])
def test_a_cancelled_job_is_not_queued_again(stand: Stand, script: str) -> None:
    code, output = stand.run(script, "w.py", send=signal.SIGTERM, FAKE_TENTHS="100")
    assert code == 75, output
    assert "cvtune got TERM" in stand.calls() and "requeue" not in stand.calls()


def test_an_interrupt_from_elsewhere_does_not_queue_again(stand: Stand) -> None:
    code, _ = stand.run("slurm.sbatch", "w.py", FAKE_CODE="75")
    assert code == 75 and "requeue" not in stand.calls()


def test_an_element_is_queued_again_by_its_own_name(stand: Stand) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "4", "FAKE_TENTHS": "100"}
    code, output = stand.run("slurm.sbatch", "w.py", send=signal.SIGUSR1, **array)
    assert code == 0, output
    assert stand.calls().splitlines()[-1] == "scontrol@n1: requeue 77_4"


def test_a_job_is_not_queued_again_for_ever(stand: Stand) -> None:
    (stand.folder / "studies" / ".slurm").mkdir(parents=True)
    (stand.folder / "studies" / ".slurm" / "77.timeouts").write_text("once\ntwice\n")
    code, output = stand.run("slurm.sbatch", "w.py", send=signal.SIGUSR1, FAKE_TENTHS="100", CVTUNE_TIMEOUTS="2")
    assert code == 75 and "not queued again" in output and "requeue" not in stand.calls()


def test_a_node_that_is_not_as_granted_ends_the_job(stand: Stand) -> None:
    code, _ = stand.run("slurm.sbatch", "w.py", FAKE_DOCTOR="4")
    assert code == 4 and "cvtune@n1: run" not in stand.calls()
    assert (stand.folder / "studies" / ".slurm" / "logs" / "ray-77.0" / "n1" / "start.log").exists()


def test_a_failed_study_gets_rays_logs(stand: Stand) -> None:
    study = stand.folder / "studies" / "mine"
    study.mkdir(parents=True)
    (study / "lease.json").write_text('{"term": 1, "slurm_job": "77"}')
    assert stand.run("slurm.sbatch", "w.py", FAKE_CODE="1")[0] == 1
    assert {path.name for path in (study / "logs" / "ray-77.0").iterdir()} == {"n1", "n2"}


def test_a_folder_of_somebody_else_is_not_used(stand: Stand) -> None:
    (stand.temp / "cvtune-77.0").mkdir()
    code, output = stand.run("slurm-one-node.sbatch", "w.py")
    assert code != 0 and "File exists" in output


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_scripts_share_is_the_same_in_all() -> None:
    """Each script is complete in itself; what they repeat must not drift apart."""
    one, array, several, worker = ((ROOT / "cluster" / name).read_text() for name in NAMES)
    for shared in ("finish()", "count=$CVTUNE_STORAGE", "trap 'asked=${asked:-USR1}"):
        assert paragraph(one, shared) == paragraph(array, shared)
    assert paragraph(one, "finish()") == paragraph(several, "finish()")
    assert ray_options(several) == ray_options(worker)
    for text in (one, array, several, worker):
        assert not re.search(r"set -[a-z]*x|\benv\b|printenv|cat .*token", text)
        assert "symmetric-run" not in text and "ray stop" not in text


NAMES = ("slurm-one-node.sbatch", "slurm-array.sbatch", "slurm.sbatch", "worker.sbatch")


def paragraph(text: str, start: str) -> str:
    """From the line that holds `start` to the next line that closes a block at the margin."""
    begin = text.index(start)
    return re.split(r"\n(?:\}|fi)\n", text[begin:])[0]


def ray_options(text: str) -> list[str]:
    """The options that `ray start` gets for what Slurm granted."""
    return sorted(re.findall(r"--(?:num-cpus|num-gpus|memory|object-store-memory|m(?:in|ax)-worker-port)=\S+", text))
