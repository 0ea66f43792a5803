"""NVIDIA's Multi-Process Service (MPS) for trials that share a GPU.

Without it the kernels of several processes take turns on a GPU, so that small ones leave most of it idle, however many
trials there are; with it they run beside one another. A process joins before it first uses the GPU. The first one on a
node starts a keeper, which runs NVIDIA's daemon for as long as any process of this user is joined: each holds a lock on
a file, which the kernel releases however the process ends. A daemon that somebody else has started is used instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import IO

from cvtune.pulse import die_with_parent

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
SITES_OWN = Path("/tmp/nvidia-mps")  # where NVIDIA's programs look by themselves
STARTS_S = 20.0
LINGERS_S = 10.0  # after the last process has left, since trials follow one another
_JOINED: list[IO[bytes]] = []  # the lock of this process


def folder() -> Path:
    """Where this user's daemon on this node listens. Short, as names of sockets have to be."""
    return Path(tempfile.gettempdir()) / f"cvtune-mps-{os.getuid()}"


def join(place: Path | None = None) -> bool:
    """Let this process, and those that it starts, use GPUs beside others; to be called before it uses one.

    Args:
        place: instead of `folder()`.

    Returns:
        Whether it does: not where NVIDIA's daemon is not installed, or does not start.
    """
    if shutil.which(CONTROL) is None:
        return False
    if _JOINED or os.environ.get(PIPES) or (SITES_OWN / "control").exists():
        return True
    place = place or folder()
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            return False
        users = (place / "users").open("ab")
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper is about to leave
        if not _is_kept(place):
            _start_keeper(place)
        if not _answers(place):
            users.close()
            return False
    except OSError as error:
        print(f"GPUs are not shared by MPS: {error}")
        return False
    _JOINED.append(users)
    os.environ |= {PIPES: str(place), LOGS: str(place)}
    return True


def leave() -> None:
    """Undo `join`, for processes that have not used a GPU yet and those that this one will start."""
    while _JOINED:
        _JOINED.pop().close()
        for name in (PIPES, LOGS):
            os.environ.pop(name, None)


def was_ended_by_another(error: BaseException) -> bool:
    """Whether a GPU refuses work since another process that shares it by MPS has failed there, and no fault of ours."""
    return "MPS" in str(error) and isinstance(error, RuntimeError)


def keep(place: Path) -> None:
    """Run NVIDIA's daemon until nobody has used it for `LINGERS_S`; at once over where another keeper is at work."""
    with (place / "keeper").open("ab") as own, (place / "users").open("ab") as users:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        # Ray's numbers of GPUs are the node's, and a process's are counted among those that the daemon sees.
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        environment |= {PIPES: str(place), LOGS: str(place)}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        daemon = subprocess.Popen(
            [CONTROL, "-f"], env=environment, preexec_fn=partial(die_with_parent, signal.SIGTERM), **quiet
        )  # type: ignore[call-overload]
        left_at = time.monotonic()
        while daemon.poll() is None and time.monotonic() - left_at < LINGERS_S:
            time.sleep(0.5)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.monotonic() - left_at >= LINGERS_S - 0.5:
                    break  # with the lock, so that nobody joins a daemon that is about to go
                fcntl.flock(users, fcntl.LOCK_UN)
                continue
            left_at = time.monotonic()
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run([CONTROL], input=b"quit\n", env=environment, timeout=10, capture_output=True, check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(5)
        daemon.kill()
        daemon.wait()
        (place / "control").unlink(missing_ok=True)


def _is_kept(place: Path) -> bool:
    with (place / "keeper").open("ab") as own:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _start_keeper(place: Path) -> None:
    (place / "control").unlink(missing_ok=True)  # of one that was killed
    subprocess.Popen(
        [sys.executable, "-m", "cvtune.mps", str(place)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it outlives who started it
    )


def _answers(place: Path) -> bool:
    until = time.monotonic() + STARTS_S
    while time.monotonic() < until:
        if (place / "control").exists() and _is_kept(place):
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
