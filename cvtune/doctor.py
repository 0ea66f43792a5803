"""Looks a cluster over: gathers the facts of every node through Ray and has them judged. What `cvtune doctor` runs."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvtune.cluster import cluster, trial_resources

# isort: split
import ray  # after `cluster`, which sets what Ray reads when it is imported
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cvtune import allocation, checks, probe, rehearsal
from cvtune.checks import Check, Member, Sight
from cvtune.errors import ClusterError
from cvtune.gpu_checks import gpu_check
from cvtune.room import fit
from cvtune.study import Study

ANSWER_S = 60.0  # for a first answer: a process has to start, on a file system that may be slow
SEEN_S = 10.0  # for a file to become visible on another node
ROOM_S = 60.0  # for a busy cluster to make room for a rehearsal
VARIABLES = (*allocation.VARIABLES, "CUDA_VISIBLE_DEVICES")


def examine(
    study: Study | None, storage: Path | None, cache: Path | None, wait_s: float, roots: tuple[str, ...] = ()
) -> Iterator[Check]:
    """Look over the cluster that RAY_ADDRESS names, or this machine; each check is given as soon as it is made.

    Args:
        study: also rehearsed on every node that a trial fits on.
        storage: the folder of the studies, which all nodes have to share.
        wait_s: how long to wait for Ray to be there, and for all nodes of the Slurm job to join.

    Raises:
        ClusterError: Ray could not be reached or started.
    """
    begun = time.monotonic()
    _await_ray(wait_s)
    reached, reason = _start_tracking_probe()
    with cluster(), _told_as_ours():
        nodes = _Nodes(local=os.environ.get("RAY_ADDRESS", "") in ("", "local"))
        sight = nodes.look(begun + wait_s)
        yield checks.nodes(sight, time.monotonic() - begun)
        yield checks.versions(sight)
        yield checks.resources(sight)
        yield gpu_check(sight, gpu if study and isinstance(gpu := study.resources.gpu, float) else None)
        yield checks.ports(sight, *nodes.ports())
        yield checks.temp(sight)
        yield checks.shared_memory(sight)
        yield checks.token(sight)
        folder = storage and str(storage.resolve())
        yield checks.storage(sight, folder or None, *(nodes.share(Path(folder)) if folder else ({}, 0.0)))
        yield checks.clocks(nodes.clocks())
        reached.join(2 * probe.CONNECT_S)
        yield checks.tracking(_tracking_host()[0], reason[0], os.environ.get("WANDB_MODE", ""))
        if study is not None:
            yield from _rehearse(study, cache, roots, sight, nodes)


class _Nodes:
    """The nodes of the cluster, each with a probe on it that needs no CPU, so that a busy cluster answers too."""

    def __init__(self, local: bool) -> None:
        self._local = local
        self._probes: dict[str, Any] = {}
        self._members: dict[str, Member] = {}
        self._silent: dict[str, str] = {}
        cloudpickle.register_pickle_by_value(probe)
        self._remote: Any = ray.remote(num_cpus=0, max_restarts=0)(probe.Probe)

    def look(self, until: float) -> Sight:
        """All nodes, once those of the Slurm job have joined or the time is up."""
        while True:
            self._ask_new()
            driver = probe.Probe().facts(VARIABLES, "")
            sight = Sight(driver, tuple(self._members.values()), dict(self._silent), self._local)
            if not checks.missing_hosts(sight.job, sight.members) or time.monotonic() >= until:
                return sight
            time.sleep(1.0)

    def ids(self) -> dict[str, str]:
        """Name -> Ray's id, of the nodes that answered."""
        return {member.name: node for node, member in self._members.items()}

    def ports(self) -> tuple[dict[str, str], int]:
        """Try Ray's ports of every node from here, and those of the head from every node: failures, and how many."""
        gcs_host, _, gcs_port = ray.get_runtime_context().gcs_address.rpartition(":")
        gcs = {"GCS": (gcs_host.strip("[]"), int(gcs_port))}
        there = dict(gcs)
        for found in _alive():
            for kind in ("NodeManager", "ObjectManager"):
                name = f"{kind} of {found['NodeManagerHostname']} ({found['NodeID'][:6]})"
                there[name] = (found["NodeManagerAddress"], found[f"{kind}Port"])
        failures = {f"from here to {name}": why for name, why in probe.unreachable(there).items()}
        answers = self._all("unreachable", gcs)
        for node, refused in answers.items():
            failures |= {f"from {node} to {name}": why for name, why in refused.items()}
        return failures, len(there) + len(answers)

    def clocks(self) -> dict[str, tuple[float, float]]:
        """Node -> seconds that its clock is ahead of ours, and half of the quickest round trip."""
        return {self._members[node].name: _offset(handle) for node, handle in self._probes.items()}

    def share(self, storage: Path) -> tuple[dict[str, str], float]:
        """Pass files between this process and every node through `storage`: failures by node, and the longest wait."""
        made = not storage.exists()
        place = storage / f".doctor-{secrets.token_hex(4)}"
        try:
            place.mkdir(parents=True)
        except OSError as error:
            return {"driver": f"{place}: {type(error).__name__}: {error.strerror}"}, 0.0
        try:
            return self._pass_files(place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):
                    storage.rmdir()

    def _pass_files(self, place: Path) -> tuple[dict[str, str], float]:
        began, here, word = time.monotonic(), probe.Probe(), secrets.token_hex(16)
        if wrong := here.leaves(str(place / "driver"), word):
            return {"driver": wrong}, 0.0
        seen = self._all("sees", str(place / "driver"), word, SEEN_S)
        failures = {name: wrong for name, wrong in seen.items() if wrong}
        for node, handle in self._probes.items():
            name = self._members[node].name
            if name in failures:
                continue
            file = str(place / node)
            wrong = ray.get(handle.leaves.remote(file, word)) or here.sees(file, word, SEEN_S)
            if wrong:
                failures[name] = wrong
        return failures, time.monotonic() - began

    def _ask_new(self) -> None:
        """Stand a probe on each node that has none, and take its facts."""
        new = {node["NodeID"]: node for node in _alive() if node["NodeID"] not in self._probes}
        handles = {key: self._remote.options(scheduling_strategy=_only_on(key)).remote() for key in new}
        asked = {key: handles[key].facts.remote(VARIABLES, new[key]["ObjectStoreSocketName"]) for key in new}
        until = time.monotonic() + ANSWER_S
        for key, answer in asked.items():
            label = f"{new[key]['NodeManagerHostname']} ({new[key]['NodeManagerAddress']})"
            try:
                facts = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
            except ray.exceptions.RayError as error:
                self._silent[label] = _reason(error)
                continue
            self._silent.pop(label, None)
            self._probes[key] = handles[key]
            self._members[key] = Member(self._name(facts), new[key]["Resources"], facts)

    def _name(self, facts: Mapping[str, Any]) -> str:
        """As Slurm or the node itself calls it; several Rays on one machine are told apart by a number."""
        name = facts["environment"].get("SLURMD_NODENAME") or allocation.short(facts["host"])
        taken = {member.name for member in self._members.values()}
        return next(n for i in range(1, len(taken) + 2) if (n := name if i == 1 else f"{name}#{i}") not in taken)

    def _all(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answers of all probes to one question, by name."""
        asked = {key: getattr(handle, method).remote(*arguments) for key, handle in self._probes.items()}
        return {self._members[key].name: ray.get(answer) for key, answer in asked.items()}


@contextlib.contextmanager
def _told_as_ours() -> Iterator[None]:
    """A node that is lost while it is looked at ends the examination in one sentence."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node was lost while it was looked at ({_reason(error)}). Run it again.") from error


def _rehearse(study: Study, cache: Path | None, roots: tuple[str, ...], sight: Sight, nodes: _Nodes) -> Iterator[Check]:
    """Rehearse the study on each node that a trial fits on."""
    try:
        needs = trial_resources(study)
    except ClusterError as error:
        yield Check("trial", "red", str(error))
        return
    ids = nodes.ids()
    able = {node["NodeID"] for node in ray.nodes() if fit(node, needs, study.resources.labels)}
    names = [member.name for member in sight.members if ids[member.name] in able]
    remote = ray.remote(rehearsal.Rehearsal)
    job = (study.model_dump(mode="json"), cache and str(cache.resolve()), roots, str(Path.cwd()))
    actors = {
        name: remote.options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            scheduling_strategy=_only_on(ids[name]),
        ).remote(*job)
        for name in names
    }
    facts, busy = _results(actors)
    rest = f"; no room on {', '.join(busy)} within {ROOM_S:.0f} s" if busy else ""
    if not facts:
        yield Check("data and code", "skipped", f"not rehearsed{rest}", "Ask again when the cluster is less busy")
        return
    data = rehearsal.data_check(facts)
    yield Check(data.name, data.state, data.found + rest, data.remedy)
    yield rehearsal.speed_check(study, facts)


def _results(actors: Mapping[str, Any]) -> tuple[dict[str, rehearsal.Facts], list[str]]:
    """What the rehearsals found by node, and the nodes that had no room for one."""
    ready = {actor.ready.remote(): name for name, actor in actors.items()}
    done, waiting = ray.wait(list(ready), num_returns=len(ready), timeout=ROOM_S)
    running = {ready[reference]: actors[ready[reference]].run.remote() for reference in done}
    facts: dict[str, rehearsal.Facts] = {}
    for name, result in running.items():
        try:
            facts[name] = ray.get(result)
        except ray.exceptions.RayError as error:
            facts[name] = {"error": _reason(error)}
    for actor in actors.values():
        ray.kill(actor)
    return facts, [ready[reference] for reference in waiting]


def _await_ray(wait_s: float) -> None:
    """Wait until the address of a cluster that is just being started accepts connections.

    Raises:
        ClusterError: it does not. Ray itself would go on trying for minutes.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    match = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", address)  # not "auto", which Ray looks up itself
    until = time.monotonic() + wait_s
    while match and (reason := probe.refusal(match[1], int(match[2]))):
        if time.monotonic() >= until:
            raise ClusterError(
                f"Ray could not be reached at RAY_ADDRESS={address} within {wait_s:g} s ({reason}). Start it, wait "
                "longer with --wait, or unset RAY_ADDRESS to look at this machine alone."
            )
        time.sleep(1.0)


def _only_on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _offset(handle: Any, rounds: int = 5) -> tuple[float, float]:
    """Seconds that a probe's clock is ahead of ours, by the quickest of some round trips, and half of that trip."""
    found = []
    for _ in range(rounds):
        began, clock = time.monotonic(), time.time()
        there = ray.get(handle.clock.remote())
        half = (time.monotonic() - began) / 2
        found.append((half, there - clock - half))
    half, ahead = min(found)
    return ahead, half


def _reason(error: Exception) -> str:
    """The last line of what Ray says, which is the cause."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"no answer within {ANSWER_S:.0f} s"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def _tracking_host() -> tuple[str, int]:
    """Where tracking connects to: the server, or the proxy on the way to it."""
    url = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host = url.hostname or "api.wandb.ai"
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        url = urllib.parse.urlsplit(proxy)
    return url.hostname or host, url.port or (80 if url.scheme == "http" else 443)


def _start_tracking_probe() -> tuple[threading.Thread, list[str]]:
    """Try the tracking server in a thread, since looking up a name may take long; the list holds the reason."""
    reason = ["no answer to the look-up of its name"]
    host, port = _tracking_host()

    def target() -> None:
        reason[:] = [probe.refusal(host, port)]

    thread = threading.Thread(target=target, name="tracking", daemon=True)
    thread.start()
    return thread, reason
