"""Tracking beside a running study: which mode, who gets the key, and a syncer that nobody waits for in training."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cvtune.errors import ConfigError
from cvtune.sections import Tracking
from cvtune.study import Study

SECRET = "WANDB_API_KEY"
NO_KEY = (
    "there is no key of W&B for {host}. Run `wandb login` once, set WANDB_API_KEY, or keep W&B's files here with "
    "--set tracking.mode=offline (`cvtune sync STUDY --mode online` delivers them later)."
)
GRACE_S = 5.0  # between SIGTERM and SIGKILL of a syncer that is late

Mode = Literal["online", "offline", "off"]


def mode_of(tracking: Tracking, environ: Mapping[str, str] = os.environ) -> Mode:
    """The mode that a study is tracked in here.

    Raises:
        ConfigError: online is asked for, but there is no key.
    """
    if tracking.mode == "auto":
        wished = environ.get("WANDB_MODE")
        if wished == "offline":
            return "offline"
        return "online" if has_key(environ) and wished not in ("disabled", "dryrun") else "off"
    if tracking.mode == "online" and not has_key(environ):
        raise ConfigError(f"tracking.mode = 'online', but {NO_KEY.format(host=_host(environ))}")
    return tracking.mode


def mode_for_sync(wanted: str) -> Literal["online", "offline"]:
    """The mode of `cvtune sync`, which is online unless offline is said.

    Raises:
        ConfigError: there is no key.
    """
    if wanted == "offline":
        return "offline"
    if not has_key(os.environ):
        raise ConfigError(NO_KEY.format(host=_host(os.environ)))
    return "online"


def has_key(environ: Mapping[str, str]) -> bool:
    """Whether W&B's client will find a key: in the environment, or in the netrc file under the server's name."""
    if environ.get(SECRET) or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = environ.get("NETRC")
    for path in [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            found = netrc.netrc(path).authenticators(_host(environ))
            if found and found[2]:
                return True
    return False


@contextlib.contextmanager
def withheld() -> Iterator[dict[str, str]]:
    """Take the key out of the environment, so that no process that is started meanwhile has it.

    Yields it as a part of an environment, for the one that may.
    """
    taken = {SECRET: os.environ.pop(SECRET)} if SECRET in os.environ else {}
    try:
        yield taken
    finally:
        os.environ.update(taken)


@contextlib.contextmanager
def tracked(study: Study, folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Yields what starts the syncer of a study, to be called once there is a journal.

    Until then, and while it runs, the key is withheld. At the end the syncer gets `tracking.wait_s` seconds to
    deliver what is left; then it is ended, and it is said what to do. Whatever becomes of it, the run is not affected.

    Raises:
        ConfigError: online is asked for, but there is no key.
    """
    mode = mode_of(study.tracking)
    why = " (no key is configured)" if study.tracking.mode == "auto" and mode == "off" else ""
    to = f", project {study.tracking.project!r}" if mode == "online" else ""
    say(f"tracking in W&B: {mode}{to}{why}")
    started: list[subprocess.Popen[bytes]] = []
    with withheld() as secret:

        def start() -> None:
            if mode != "off":
                started.append(_start(folder, mode, {**os.environ, **secret}))

        try:
            yield start
        finally:
            for process in started:
                _end(process, study.tracking.wait_s, folder, say)


def server(environ: Mapping[str, str]) -> str:
    """The server's URL: WANDB_BASE_URL, else what `wandb login --host` has left in W&B's settings, else W&B's own."""
    if environ.get("WANDB_BASE_URL"):
        return environ["WANDB_BASE_URL"].rstrip("/")
    settings = configparser.ConfigParser(interpolation=None)
    folder = environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    with contextlib.suppress(OSError, configparser.Error):
        settings.read(Path(folder).expanduser() / "settings")
    return settings.get("default", "base_url", fallback="https://api.wandb.ai").rstrip("/")


def _host(environ: Mapping[str, str]) -> str:
    return urlsplit(server(environ)).netloc


def _log(folder: Path) -> Path:
    return folder / "logs" / "sync.txt"


def _start(folder: Path, mode: str, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    _log(folder).parent.mkdir(exist_ok=True)
    with _log(folder).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cvtune.track", str(folder), "--watch", "--mode", mode],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for the study; its syncer then delivers how that ended
        )


def _end(process: subprocess.Popen[bytes], wait_s: float, folder: Path, say: Callable[[str], None]) -> None:
    try:
        code = process.wait(wait_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            code = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    lines = _log(folder).read_text(errors="replace").splitlines()
    last = lines[-1] if lines else ""
    if code and "cvtune sync" not in last:  # it was killed
        last = f"not everything is delivered; `cvtune sync {folder}` goes on from there"
    say(f"tracking: {last}" + (f" (why: {_log(folder)})" if code else ""))
