"""What Slurm granted to a job, read from the environment that it gives to batch scripts and steps. Pure functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# All that is read. Not every SLURM_ variable may be passed on: SLURM_JWT is a secret.
VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NODELIST", "SLURMD_NODENAME"),
    *("SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"),
    *("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"),
)


@dataclass(frozen=True)
class Allocation:
    """The nodes of a job. `hosts` are Slurm's names of them, () where the environment does not say."""

    job: str
    nodes: int
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Grant:
    """What a job may use on one node; None where the environment does not say."""

    cpus: int | None
    memory: int | None  # bytes
    gpus: int | None


def allocation(environment: Mapping[str, str]) -> Allocation | None:
    """The job that a process with this environment belongs to; None outside of one."""
    nodes = environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES") or ""
    if not nodes.isdigit():
        return None
    return Allocation(environment.get("SLURM_JOB_ID", ""), int(nodes), hosts(environment.get("SLURM_JOB_NODELIST", "")))


def granted(environment: Mapping[str, str], host: str) -> Grant:
    """What the job of this environment may use on the node that Slurm calls `host`."""
    cpus = _number(environment.get("SLURM_CPUS_ON_NODE"))
    if per_node := environment.get("SLURM_JOB_CPUS_PER_NODE"):
        by_host = dict(zip(hosts(environment.get("SLURM_JOB_NODELIST", "")), counts(per_node), strict=False))
        cpus = by_host.get(host, cpus)
    gpus = _number(environment.get("SLURM_GPUS_ON_NODE"))
    if gpus is None and (per_node := environment.get("SLURM_GPUS_PER_NODE")):
        gpus = gpu_count(per_node)
    return Grant(cpus, _memory(environment, cpus, gpus), gpus)


def hosts(nodelist: str) -> tuple[str, ...]:
    """The names in Slurm's compressed form: 'a[1-2,05],b' -> a1, a2, a05, b.

    Not by `scontrol`, which is missing in most containers.
    """
    return tuple(name for item in _split(nodelist) for name in _expanded(item))


def counts(text: str) -> tuple[int, ...]:
    """One number per node from Slurm's compressed form: '4(x2),2' -> 4, 4, 2; () if it is another form."""
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if match is None:
            return ()
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)


def gpu_count(text: str) -> int | None:
    """GPUs in a value of `--gpus-per-node`: '4', 'a100:4' or 'a100:2,v100:1'; None if it is another form."""
    numbers = [_number(item.rpartition(":")[2]) for item in text.split(",")]
    return None if None in numbers else sum(number for number in numbers if number is not None)


def short(host: str) -> str:
    """A host name without its domain, as Slurm names nodes."""
    return host.partition(".")[0] if not host.replace(".", "").isdigit() else host


def _memory(environment: Mapping[str, str], cpus: int | None, gpus: int | None) -> int | None:
    """Bytes. Slurm says them in MiB, per node or per CPU or GPU; 0 means all that the node has."""
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus), ("SLURM_MEM_PER_GPU", gpus)):
        amount = _number(environment.get(name))
        if amount and times:
            return amount * times * 2**20
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _split(nodelist: str) -> list[str]:
    """At the commas that do not stand in brackets."""
    return [item for item in re.split(r",(?![^\[]*\])", nodelist.strip()) if item]


def _expanded(item: str) -> Iterator[str]:
    parts = re.split(r"\[([^\]]*)\]", item)  # text, ranges, text, ranges, ...
    choices = [[part] if i % 2 == 0 else list(_ranges(part)) for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _ranges(text: str) -> Iterator[str]:
    """'1-3,007' -> 1, 2, 3, 007. Leading zeros stay."""
    for item in text.split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{number:0{len(first)}d}"
