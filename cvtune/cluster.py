"""Ray, as a study needs it: reached or started, what it can hold, and how many trials at once."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Tune would write three log formats and its own state per trial, which the journal replaces.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(_name, _value)

import psutil
import ray

from cvtune import allocation, gauge
from cvtune.errors import ClusterError
from cvtune.packing import Packing
from cvtune.room import Node, fit, matches, told
from cvtune.study import Study
from cvtune.track.launch import withheld

SLOTS_S = 5.0  # how long the size of the cluster is taken for granted; nodes join and leave
STARTS = 3  # Ray gives its processes 30 s to start, which no setting lengthens; a busy machine can take longer


@contextlib.contextmanager
def cluster(niceness: int = 15, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, else start Ray on this machine for as long as we need it.

    Args:
        niceness: of the processes that Ray started here trains in. Those of another cluster have what it was started
            with.
        say: told in words when Ray has to be started once more.

    Raises:
        ClusterError: neither worked.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"object_store_memory": 200 * 2**20, "include_dashboard": False, **granted()}
    options = local if address == "local" else {}
    if options:
        make_token()
    os.environ["RAY_worker_niceness"] = str(niceness)  # noqa: SIM112  (as what Ray starts here reads it)
    for left in reversed(range(STARTS if address == "local" else 1)):
        try:
            with withheld():  # the key of W&B: all that Ray starts here would inherit it
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="cvtune", **options
                )
            break
        except Exception as error:  # Ray says by a bare Exception that its processes did not start in time
            if not left:
                raise ClusterError(_not_reached(address, error)) from error
            say(f"Ray did not start ({_told(error)}); starting it once more")
            _end_what_ray_left()
    try:
        yield
    finally:
        ray.shutdown()


def make_token() -> None:
    """The token of Ray's that starts here, for its user alone. Ray makes one itself, which others may read (umask 022).

    One that is there is left as it is, and so is what the environment says of a token.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a home that cannot be written: Ray will say so
        path.parent.mkdir(exist_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(aside, path)  # whole or not at all, and never over one that is there
        finally:
            aside.unlink()


def _end_what_ray_left() -> None:
    """End the processes of a Ray that did not start; it ends them itself only once we end."""
    programs = str(Path(ray.__file__).parent)  # all of them are programs of its package

    def of_ray(process: psutil.Process) -> bool:
        try:
            return any(programs in word for word in process.cmdline())
        except psutil.Error:  # it ended
            return False

    started = [process for process in psutil.Process().children(recursive=True) if of_ray(process)]
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(started, timeout=10)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"  # Ray says it in several lines


def _not_reached(address: str, error: Exception) -> str:
    here = address == "local"
    where = "started here" if here else f"reached at RAY_ADDRESS={address}"
    advice = "Unset RAY_ADDRESS to run on this machine alone."
    if here:
        advice = f"It was tried {STARTS} times. Wait until this machine is less busy; the same command again is safe."
    elif "Version mismatch" in str(error):
        advice = "Install the same Ray and Python on every node and here: cluster/requirements.txt."
    return f"Ray could not be {where} ({_told(error)}). {advice}"


def granted() -> dict[str, Any]:
    """What Slurm granted to us on this machine, for `ray.init`; nothing outside of Slurm.

    Ray would take every core and GPU that it sees, also where Slurm does not confine its jobs.
    """
    grant = allocation.granted(os.environ, os.environ.get("SLURMD_NODENAME", ""))
    if grant.cpus is None:
        return {}
    memory = {} if grant.memory is None else {"_memory": grant.memory * 8 // 10}
    return {"num_cpus": grant.cpus, "num_gpus": grant.gpus or 0, **memory}


def trial_resources(study: Study, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """CPUs and GPUs of one trial, in Ray's words. Waits `resources.wait_s` for a node that can hold one.

    With `resources.gpu = "auto"` a trial has a whole GPU until it was measured how many share one (`packed`).

    Raises:
        ClusterError: no node of the cluster could ever run a trial.
    """
    until = time.monotonic() + study.resources.wait_s
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpu, labels = study.resources.gpu, study.resources.labels
        chosen = [node for node in nodes if matches(node, labels)]
        if gpu is None or gpu == "auto":  # a whole one to measure on
            gpu = 1.0 if any(node["Resources"].get("GPU", 0) >= 1 for node in chosen) else 0.0
        needs = {"CPU": study.resources.cpu, **({"GPU": gpu} if gpu else {})}
        if any(fit(node, needs, labels) for node in chosen):
            return needs
        if time.monotonic() >= until or interrupted():
            raise ClusterError(_no_room(study, gpu, nodes, chosen))
        time.sleep(1.0)


def _no_room(study: Study, gpu: float, nodes: list[Node], chosen: list[Node]) -> str:
    wait = "wait for such a node with --set resources.wait_s=SECONDS."
    if not chosen:
        return f"resources.label = {study.resources.label!r}: no node has that. The nodes have {told(nodes)}. Or {wait}"
    have = "; ".join(
        sorted({f"{n['Resources'].get('CPU', 0):g} CPUs and {n['Resources'].get('GPU', 0):g} GPUs" for n in chosen})
    )
    labelled = f" with resources.label = {study.resources.label!r}" if study.resources.label else ""
    return (
        f"a trial asks for resources.cpu = {study.resources.cpu:g} and resources.gpu = {gpu:g}; no node{labelled} has "
        f"that (nodes have {have}). Lower them with --set, or {wait}"
    )


def packed(
    study: Study, job: Mapping[str, Any], needs: Mapping[str, float], interrupted: Callable[[], bool]
) -> Packing:
    """How many trials share a GPU, measured on a node that one could run on. `needs`: what `trial_resources` gave.

    Raises:
        CvtuneError: it could not be measured.
        ClusterError: `interrupted`, or the node was lost.
    """
    chosen = [node["Resources"] for node in ray.nodes() if fit(node, needs, study.resources.labels)]
    cores = min(have["CPU"] / have["GPU"] for have in chosen)
    remote = ray.remote(gauge.measure).options(
        num_cpus=needs["CPU"], num_gpus=1, label_selector=study.resources.labels, max_retries=0
    )
    asked: Any = remote.remote(dict(job), study.model_dump(mode="json"), cores)
    while not ray.wait([asked], timeout=0.5)[0]:
        if interrupted():
            ray.cancel(asked, force=True)
            raise ClusterError("interrupted while it was measured how many trials share a GPU.")
    try:
        found: dict[str, Any] = ray.get(asked)
        return gauge.answer(found)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"resources.gpu = 'auto' could not be measured: {error}") from error


def slots_of(needs: Mapping[str, float], labels: Mapping[str, str], most: int | None) -> Callable[[], int]:
    """A function that says how many trials can run at once: what the cluster holds now, at most `most`, at least 1."""
    found, due = 1, 0.0

    def slots() -> int:
        nonlocal found, due
        if time.monotonic() >= due:
            fits = sum(fit(node, needs, labels) for node in ray.nodes())
            found, due = max(1, fits if most is None else min(fits, most)), time.monotonic() + SLOTS_S
        return found

    return slots
