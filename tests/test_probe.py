"""The facts of one node, on this machine: real sockets, real folders, an `nvidia-smi` of our own on PATH."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cvtune import probe

QUERIED = """\
0, GPU-5c89c76c-0000-1111-2222-333333333333, NVIDIA A100-SXM4-80GB, 81920, Default, Enabled
1, GPU-a1b2c3d4-0000-1111-2222-333333333333, NVIDIA A100-SXM4-80GB, 81920, Exclusive_Process, Disabled
"""
LISTED = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5c89c76c-0000-1111-2222-333333333333)
  MIG 3g.40gb     Device  0: (UUID: MIG-11111111-aaaa-5555-8888-cccccccccccc)
  MIG 3g.40gb     Device  1: (UUID: MIG-22222222-aaaa-5555-8888-cccccccccccc)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-a1b2c3d4-0000-1111-2222-333333333333)
"""


@pytest.fixture
def fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that answers as the driver's tool does for two A100, one cut in two."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then cat <<E\n{LISTED}E\nelse cat <<E\n{QUERIED}E\nfi\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return tool


def test_gpus_and_mig_slices_are_read(fake_nvidia_smi: Path) -> None:
    found = probe.gpu_facts()
    assert [gpu["compute_mode"] for gpu in found["devices"]] == ["Default", "Exclusive_Process"]
    assert {gpu["name"] for gpu in found["devices"]} == {"NVIDIA A100-SXM4-80GB"}
    assert found["slices"] == {
        "GPU-5c89c76c-0000-1111-2222-333333333333": [
            "MIG-11111111-aaaa-5555-8888-cccccccccccc",
            "MIG-22222222-aaaa-5555-8888-cccccccccccc",
        ]
    }


def test_a_failing_nvidia_smi_is_told(fake_nvidia_smi: Path) -> None:
    fake_nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    assert "exit status 9" in probe.gpu_facts()["error"]


def test_without_nvidia_smi_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.gpu_facts() == {}


def test_refused_and_accepted_connections_are_told_apart() -> None:
    with socket.socket() as server, socket.socket() as closed:
        server.bind(("127.0.0.1", 0))
        server.listen()
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        places = {"there": server.getsockname(), "gone": closed.getsockname()}
        found = probe.unreachable(places)
    assert list(found) == ["gone"] and "refused" in found["gone"]


def test_a_name_that_does_not_exist_is_a_reason() -> None:
    assert probe.refusal("no-such-host.invalid", 443).startswith("no-such-host.invalid:443: ")


def test_a_file_of_another_process_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "word"
    script = f"import time; time.sleep(0.5); open({str(file)!r}, 'w').write('hello')"
    with subprocess.Popen([sys.executable, "-c", script]):
        assert probe.Probe().sees(str(file), "hello", 20) == ""
    assert "another content" in probe.Probe().sees(str(file), "other", 0)
    assert "FileNotFoundError" in probe.Probe().sees(str(tmp_path / "never"), "", 0)


def test_a_file_is_left_whole(tmp_path: Path) -> None:
    assert probe.Probe().leaves(str(tmp_path / "a"), "text") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert "FileNotFoundError" in probe.Probe().leaves(str(tmp_path / "no" / "a"), "text")


def test_a_folder_within_a_private_one_is_closed_whatever_its_own_mode(tmp_path: Path) -> None:
    private, inner = tmp_path / "private", tmp_path / "private" / "ray"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    private.chmod(0o700)
    assert not probe.is_open(inner)
    assert probe.folder_facts(inner)["ours"]
    assert "FileNotFoundError" in probe.folder_facts(tmp_path / "none")["error"]


def test_a_folder_is_open_where_all_above_it_are(tmp_path: Path) -> None:
    if any(not folder.stat().st_mode & 0o011 for folder in tmp_path.parents):
        folder = Path("/tmp")
    else:
        folder = tmp_path
        folder.chmod(0o755)
    assert probe.is_open(folder)


def test_the_token_is_located_but_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret")
    file.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    found = probe.token_facts({"RAY_AUTH_TOKEN_PATH": str(file)})
    assert found == {"mode": "token", "from": str(file), "bits": "0600", "ours": True, "open": False}
    assert probe.token_facts({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})["missing"]
    direct = probe.token_facts({"RAY_AUTH_TOKEN": "s3cret"})
    assert direct == {"mode": "token", "from": "RAY_AUTH_TOKEN"}


def test_versions_are_known_without_an_import() -> None:
    script = (
        "import sys, json; from cvtune import probe; v = probe.versions(); "
        "print(json.dumps([v, [m for m in ('ray', 'torch') if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]]"), done.stdout
    found = probe.versions()
    assert found["ray"][0].isdigit() and "(source " in found["cvtune"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
