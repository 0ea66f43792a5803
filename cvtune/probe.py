"""What one node of a cluster is like: facts for `cvtune doctor`, gathered by a process on that node.

Sent to the nodes by value, so that it answers also where cvtune is missing or another version. Therefore it imports
the standard library only, and no module of cvtune.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Facts = dict[str, Any]  # plain JSON
PACKAGES = ("cvtune", "ray", "torch", "torchvision", "albumentations", "numpy")
GPU_QUERY = ("index", "uuid", "name", "memory.total", "compute_mode", "mig.mode.current")
CONNECT_S = 3.0


class Probe:
    """Stands on one node and answers. Every method returns plain values and none raises for what it finds."""

    def facts(self, variables: tuple[str, ...], socket_path: str) -> Facts:
        """Everything about this node that does not concern other nodes.

        Args:
            variables: names of environment variables to report; none that holds a secret.
            socket_path: Ray's longest socket on this node: <temp>/<session>/sockets/plasma_store.
        """
        environment = raylet_environment()
        session = Path(socket_path).parent.parent
        return {
            "host": platform.node(),
            "environment": {name: environment[name] for name in variables if name in environment},
            "versions": versions(),
            "temp": {"path": str(session), "socket_bytes": len(os.fsencode(socket_path)), **folder_facts(session)},
            "shm_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
            "token": token_facts(environment),
            "gpus": gpu_facts(),
        }

    def clock(self) -> float:
        """The time here, s since 1970."""
        return time.time()

    def unreachable(self, places: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Of places (name -> host, port) those that no TCP connection can be made to, with the reason."""
        return unreachable(places)

    def sees(self, file: str, content: str, within_s: float) -> str:
        """Wait for a file with a content; "" once it is there, else what is wrong with it."""
        until, wrong = time.monotonic() + within_s, ""
        while True:
            try:
                found = Path(file).read_text()
            except OSError as error:
                wrong = f"{type(error).__name__}: {error.strerror}"
            else:
                if found == content:
                    return ""
                wrong = "has another content"
            if time.monotonic() > until:
                return f"{file}: {wrong}"
            time.sleep(0.1)

    def leaves(self, file: str, content: str) -> str:
        """Write a file aside, flush it and give it its name, as a study's files are written; "" or what went wrong."""
        path = Path(file)
        try:
            with path.with_suffix(".part").open("w") as aside:
                aside.write(content)
                aside.flush()
                os.fsync(aside.fileno())
            path.with_suffix(".part").replace(path)
        except OSError as error:
            return f"{file}: {type(error).__name__}: {error.strerror}"
        return ""


def raylet_environment() -> Mapping[str, str]:
    """The environment that Ray was started with on this node. Its workers have another CUDA_VISIBLE_DEVICES."""
    parent = Path("/proc") / str(os.getppid())
    try:
        if (parent / "comm").read_text().strip() != "raylet":
            return os.environ
        pairs = (parent / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return os.environ
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def versions() -> dict[str, str]:
    """Python's and each package's version, nothing imported; of cvtune also a digest of its source."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    spec = importlib.util.find_spec("cvtune")
    if spec is not None and spec.origin is not None:
        digest = hashlib.sha256()
        for file in sorted(Path(spec.origin).parent.rglob("*.py")):
            digest.update(file.read_bytes())
        found["cvtune"] += f" (source {digest.hexdigest()[:8]})"
    return found


def folder_facts(folder: Path) -> Facts:
    """Whose a folder is, whether other users get into it, and how full its disk is (share in 0 to 1)."""
    try:
        status, disk = folder.stat(), shutil.disk_usage(folder)
    except OSError as error:
        return {"error": f"{type(error).__name__}: {error.strerror}"}
    ours = status.st_uid == os.getuid()
    return {"ours": ours, "open": is_open(folder), "full": 1 - disk.free / disk.total, "free_bytes": disk.free}


def is_open(path: Path) -> bool:
    """Whether users other than the owner can get at a file or folder: its own mode and those of all folders above."""
    if not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return False
    return all(folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in path.resolve().parents)


def token_facts(environment: Mapping[str, str]) -> Facts:
    """How Ray's token gets here. The token itself is never read."""
    facts: Facts = {"mode": os.environ.get("RAY_AUTH_MODE", environment.get("RAY_AUTH_MODE", ""))}
    if environment.get("RAY_AUTH_TOKEN"):
        return {**facts, "from": "RAY_AUTH_TOKEN"}
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        status = path.stat()
    except OSError:
        return {**facts, "from": str(path), "missing": True}
    bits = f"{stat.S_IMODE(status.st_mode):04o}"
    return {**facts, "from": str(path), "bits": bits, "ours": status.st_uid == os.getuid(), "open": is_open(path)}


def gpu_facts() -> Facts:
    """GPUs and MIG slices as `nvidia-smi` lists them; {} where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = [f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        listed, queried = (_output(["nvidia-smi", *arguments]) for arguments in (["-L"], query))
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"nvidia-smi failed: {error}"}
    return {"devices": parse_gpus(queried), "slices": parse_slices(listed)}


def parse_gpus(text: str) -> list[dict[str, str]]:
    """The rows of `nvidia-smi --query-gpu`, by the names in GPU_QUERY. Units: MiB."""
    rows = (line.split(", ") for line in text.splitlines() if line.count(", ") == len(GPU_QUERY) - 1)
    return [dict(zip(GPU_QUERY, (value.strip() for value in row), strict=True)) for row in rows]


def parse_slices(text: str) -> dict[str, list[str]]:
    """MIG slices in `nvidia-smi -L`: UUID of the GPU -> UUIDs of its slices; only GPUs that have some."""
    slices: dict[str, list[str]] = {}
    gpu = ""
    for line in text.splitlines():
        uuid = line.rpartition("(UUID: ")[2].rstrip(" )")
        if line.startswith("GPU "):
            gpu = uuid
        elif line.strip().startswith("MIG "):
            slices.setdefault(gpu, []).append(uuid)
    return slices


def unreachable(places: Mapping[str, tuple[str, int]], timeout_s: float = CONNECT_S) -> dict[str, str]:
    """Of places (name -> host, port) those that no TCP connection can be made to, with the reason."""
    with ThreadPoolExecutor(max(1, min(32, len(places)))) as pool:
        reasons = pool.map(lambda place: refusal(place[0], place[1], timeout_s), places.values())
        return {name: reason for name, reason in zip(places, reasons, strict=True) if reason}


def refusal(host: str, port: int, timeout_s: float = CONNECT_S) -> str:
    """Why no TCP connection to a port can be made; "" if one can. Nothing is sent."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return f"{host}:{port}: {reason}"
    return ""


def _output(command: Iterable[str]) -> str:
    return subprocess.run(list(command), capture_output=True, text=True, check=True, timeout=30).stdout
