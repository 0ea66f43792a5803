"""From facts to verdicts: what `cvtune doctor` finds in order, worth a note, or wrong. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cvtune.allocation import Allocation, Grant, allocation, granted, short

State = Literal["ok", "note", "skipped", "red"]

SOCKET_BYTES = 107  # of the path of a Unix socket on Linux, without its final zero; macOS allows 103
SKEW_S = 5.0  # between two clocks: below it neither the lease of a study nor times in tracking mislead
DISK_FULL = 0.95  # share at which Ray refuses new objects (its local_fs_capacity_threshold)
DISK_NEARLY_FULL = 0.85
MEMORY_SLACK = 1.02  # Slurm counts in MiB and rounds


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, and what to do if that is not in order."""

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Member:
    """A node that answered: what Ray offers there (CPU, GPU, bytes), and the facts that `cvtune.probe` found."""

    name: str
    offered: Mapping[str, float]
    facts: Mapping[str, Any]

    @property
    def environment(self) -> Mapping[str, str]:
        """What Slurm and CUDA told the Ray of this node."""
        return self.facts["environment"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Sight:
    """A cluster as its driver sees it.

    Attributes:
        driver: facts of the driver's own process.
        silent: nodes that Ray lists but that did not answer, with the reason.
        local: Ray was started here just for this process.
    """

    driver: Mapping[str, Any]
    members: tuple[Member, ...]
    silent: Mapping[str, str]
    local: bool

    @property
    def job(self) -> Allocation | None:
        """The Slurm job of the driver."""
        return allocation(self.driver["environment"])


def judged(name: str, fine: str, red: Sequence[str], remedy: str, notes: Sequence[str] = (), advice: str = "") -> Check:
    """Red if anything is, else a note if there is one, else in order."""
    if red:
        return Check(name, "red", "; ".join(red), remedy)
    return Check(name, "note", "; ".join(notes), advice or remedy) if notes else Check(name, "ok", fine)


def missing_hosts(job: Allocation | None, members: Iterable[Member]) -> tuple[str, ...]:
    """Nodes of a job that have not joined, by name; where Slurm's names are unknown '1 more'.

    A node that another job brought in stands for none of them; one whose name Slurm does not know may stand for any.
    """
    if job is None:
        return ()
    ours = [member for member in members if (other := allocation(member.environment)) is None or other.job == job.job]
    names = {slurm_name(member) for member in ours}
    absent = tuple(host for host in job.hosts if host not in names)
    strangers = sum(slurm_name(member) not in job.hosts for member in ours)
    if job.hosts:
        return absent if len(absent) > strangers else ()
    return (f"{job.nodes - len(ours)} more",) if len(ours) < job.nodes else ()


def slurm_name(member: Member) -> str:
    """What Slurm calls a node."""
    return member.environment.get("SLURMD_NODENAME") or short(member.facts["host"])


def nodes(sight: Sight, waited_s: float) -> Check:
    """All nodes that the job has are there and answer."""
    count, job = len(sight.members), sight.job
    red = [f"{node} does not answer: {why}" for node, why in sight.silent.items()]
    if missing := missing_hosts(job, sight.members):
        assert job is not None
        red.append(f"{count} of {job.nodes} nodes joined within {waited_s:.0f} s; missing: {', '.join(missing)}")
    names = sorted(member.name for member in sight.members)
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    whose = "of the Slurm job" if job else "Ray was started here, for this process" if sight.local else "no Slurm job"
    where = "RAY_ADDRESS is not set, so Ray was started on this machine alone: set it" if sight.local else ""
    return judged(
        "nodes",
        f"{count}: {listed} ({whose})",
        red,
        where or "Look at the output of `ray start` on those nodes, or wait longer with --wait",
    )


def versions(sight: Sight) -> Check:
    """Python, packages and the source of cvtune are the same everywhere."""
    here: Mapping[str, str] = sight.driver["versions"]
    red = []
    for member in sight.members:
        there: Mapping[str, str] = member.facts["versions"]
        differing = [
            f"{name} {there.get(name)} instead of {here[name]}" for name in here if there.get(name) != here[name]
        ]
        if differing:
            red.append(f"{member.name}: {', '.join(differing)}")
    fine = ", ".join(f"{name} {here[name]}" for name in here)
    return judged("versions", fine, red, "Install the same on every node: cluster/requirements.txt, then cvtune")


def resources(sight: Sight) -> Check:
    """Ray offers on each node what Slurm granted there: no more, which is another job's, and no less."""
    cpus, gpus = (sum(m.offered.get(kind, 0) for m in sight.members) for kind in ("CPU", "GPU"))
    memory = sum(_memory(member) for member in sight.members)
    red, notes, known = [], [], 0
    for member in sight.members:
        grant = _grant(sight, member)
        known += grant != Grant(None, None, None)
        if not member.offered.get("CPU") and not member.offered.get("GPU"):
            notes.append(f"{member.name} offers no CPUs: no trials run there")  # a head kept free, by intention
            continue
        for kind, amount, unit in (("CPU", grant.cpus, "CPUs"), ("GPU", grant.gpus, "GPUs")):
            if amount is not None and member.offered.get(kind, 0) != amount:
                red.append(f"{member.name} offers {member.offered.get(kind, 0):g} {unit}, granted are {amount}")
        if grant.memory is not None and _memory(member) > grant.memory * MEMORY_SLACK:
            red.append(f"{member.name} offers {_gb(_memory(member))}, granted are {_gb(grant.memory)}")
    fine = f"{cpus:g} CPUs, {gpus:g} GPUs, {_gb(memory)}"
    fine += ", as Slurm granted" if known == len(sight.members) else " (no Slurm job to compare with)"
    remedy = "Give `ray start` --num-cpus, --num-gpus, --memory and --object-store-memory as Slurm granted them"
    return judged("resources", fine, red, remedy, notes, f"Offered: {fine}")


def ports(sight: Sight, failures: Mapping[str, str], tried: int) -> Check:
    """Every port that was tried accepts a connection. `failures`: what was tried -> the reason."""
    if sight.local:
        return Check("ports", "ok", f"{tried} connections within this machine") if not failures else _refused(failures)
    return _refused(failures) if failures else Check("ports", "ok", f"{tried} connections, to every node and back")


def temp(sight: Sight) -> Check:
    """Ray's temporary folder: short enough for its sockets, ours, closed to others, with free disk."""
    red, notes = [], []
    for member in sight.members:
        found = member.facts["temp"]
        where = f"{member.name}: {found['path']}"
        if found["socket_bytes"] > SOCKET_BYTES:
            red.append(f"{where}: its sockets have paths of {found['socket_bytes']} bytes, {SOCKET_BYTES} are possible")
        if "error" in found:
            red.append(f"{where}: {found['error']}")
            continue
        if not found["ours"]:
            red.append(f"{where} belongs to another user")
        if found["full"] > DISK_FULL:
            red.append(f"{where}: disk {found['full']:.0%} full; Ray stops working at {DISK_FULL:.0%}")
        elif found["full"] > DISK_NEARLY_FULL:
            notes.append(f"{where}: disk {found['full']:.0%} full")
        if found["open"]:
            notes.append(f"{where} is open to other users of the machine, who can read Ray's logs")
    least = min((m.facts["temp"].get("free_bytes", 0) for m in sight.members), default=0)
    fine = f"ours, closed to others, at least {_gb(least)} free"
    remedy = (
        "Make a folder with a short path and mode 0700 on a local disk and name it in RAY_TMPDIR before Ray starts "
        "(Ray opens its own folder in it to everybody)"
    )
    return judged("temp folder", fine, red, remedy, notes)


def shared_memory(sight: Sight) -> Check:
    """The object store fits into /dev/shm; else Ray keeps it on a disk."""
    sizes = [(m, m.facts["shm_bytes"]) for m in sight.members if m.facts["shm_bytes"] is not None]
    if not sizes:
        return Check("shared memory", "skipped", "no /dev/shm on this system")
    red = [
        f"{member.name}: /dev/shm has {_gb(size)}, the object store {_gb(member.offered.get('object_store_memory', 0))}"
        for member, size in sizes
        if size < member.offered.get("object_store_memory", 0)
    ]
    fine = f"at least {_gb(min(size for _, size in sizes))} for object stores of at most "
    fine += _gb(max(member.offered.get("object_store_memory", 0) for member, _ in sizes))
    remedy = (
        "Give the container more (--shm-size, or an emptyDir with medium Memory), or Ray less: --object-store-memory"
    )
    if sight.local:  # small, and Ray does with a disk what does not fit
        return judged("shared memory", fine, [], remedy, red)
    return judged("shared memory", fine, red, remedy)


def token(sight: Sight) -> Check:
    """Who may use the cluster must know its token; nobody else may read it. The token is never looked at."""
    places = [("driver", sight.driver["token"]), *((m.name, m.facts["token"]) for m in sight.members)]
    without = [name for name, found in places if found["mode"].lower() != "token"]
    wrong = [
        f"{name}: {found['from']} is missing" for name, found in places if found.get("missing") and name not in without
    ]
    wrong += [
        f"{name}: {found['from']} belongs to another user" for name, found in places if not found.get("ours", True)
    ]
    wrong += [
        f"{name}: {found['from']} has mode {found['bits']}, others can read it"
        for name, found in places
        if found.get("open")
    ]
    if without:
        wrong.insert(
            0, f"RAY_AUTH_MODE is not 'token' on {', '.join(without)}: whoever reaches a port can run code as you"
        )
    alone = len(sight.members) < 2 or sight.local
    remedy = "Set RAY_AUTH_MODE=token wherever Ray or cvtune starts, and keep the token file at mode 0600 (chmod 600)"
    return judged(
        "token", "asked for, and kept from other users", [] if alone else wrong, remedy, wrong if alone else ()
    )


def storage(sight: Sight, folder: str | None, failures: Mapping[str, str], seconds: float) -> Check:
    """Every node sees what the driver writes and the other way round. `failures`: node -> what went wrong."""
    if folder is None:
        state: State = "skipped" if len(sight.members) < 2 else "note"
        return Check("shared storage", state, "not checked", "Name the folder of the studies with --storage")
    fine = f"{folder}: written, renamed and seen by all, at most {seconds:.1f} s"
    remedy = f"{folder} must be one file system under one path on all nodes, writable for you there"
    return judged("shared storage", fine, [f"{node}: {why}" for node, why in failures.items()], remedy)


def clocks(offsets: Mapping[str, tuple[float, float]]) -> Check:
    """No clock differs too much. `offsets`: node -> (seconds ahead of the driver, half of the round trip's seconds)."""
    red = [
        f"{node} is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'} (within {bound:.1f} s)"
        for node, (ahead, bound) in offsets.items()
        if abs(ahead) - bound > SKEW_S
    ]
    most = max((abs(ahead) + bound for ahead, bound in offsets.values()), default=0.0)
    remedy = f"Set the clocks by NTP: above {SKEW_S:g} s heartbeats of studies and times in tracking mislead"
    return judged("clocks", f"differ by at most {most:.3f} s", red, remedy)


def tracking(host: str, reason: str, mode: str) -> Check:
    """Whether the tracking server can be reached from here; `reason`: why not, "" if it can."""
    if mode in ("offline", "disabled", "dryrun"):
        return Check("W&B", "skipped", f"WANDB_MODE is {mode}")
    if reason:
        return Check("W&B", "note", f"not reachable ({reason})", "Runs can be tracked offline and sent later")
    return Check("W&B", "ok", f"{host} can be reached")


def _grant(sight: Sight, member: Member) -> Grant:
    """By the node's own environment: it may have come with another job. Without one, by the driver's."""
    if allocation(member.environment) is not None:
        return granted(member.environment, slurm_name(member))
    if sight.job is not None and slurm_name(member) in sight.job.hosts:
        general = {k: v for k, v in sight.driver["environment"].items() if not k.endswith("_ON_NODE")}
        return granted(general, slurm_name(member))
    return Grant(None, None, None)


def _refused(failures: Mapping[str, str]) -> Check:
    remedy = (
        "Open these ports between the nodes, or fix them with `ray start` --port, --node-manager-port, "
        "--object-manager-port, --min-worker-port and --max-worker-port; --node-ip-address chooses the network"
    )
    return Check("ports", "red", "; ".join(f"{what}: {why}" for what, why in failures.items()), remedy)


def _memory(member: Member) -> float:
    """Bytes that Ray hands out: for processes and for the object store, which Slurm counts too."""
    return member.offered.get("memory", 0) + member.offered.get("object_store_memory", 0)


def _gb(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB"
