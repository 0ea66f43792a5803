"""Whether the GPUs of a cluster are those that Ray offers, can be shared as trials want, and get enough CPUs."""

from __future__ import annotations

from cvtune.checks import Check, Member, Sight, judged

CPUS_PER_GPU = 2  # one trains, at least one augments


def gpu_check(sight: Sight, share: float | None = None) -> Check:
    """The GPUs that Ray offers are those that CUDA shows, and trials can use them.

    Args:
        share: of a GPU that one trial gets (`resources.gpu`); None: whole ones.
    """
    holders = [member for member in sight.members if member.offered.get("GPU") or member.facts["gpus"].get("devices")]
    if not holders:
        return Check("GPUs", "skipped", "none in the cluster")
    red = [text for member in holders for text in _wrong(member, share)]
    notes = [text for member in holders for text in _notable(member)]
    total = sum(member.offered.get("GPU", 0) for member in holders)
    kinds = sorted({kind for member in holders for kind in _kinds(member)})
    remedy = (
        "Give `ray start` --num-gpus and CUDA_VISIBLE_DEVICES (MIG slices by UUID) that agree; where a GPU serves one "
        "process, keep resources.gpu at 1"
    )
    advice = "Ask for more CPUs per GPU; keep resources.gpu at 1 where a GPU serves one process"
    return judged("GPUs", f"{total:g}: {', '.join(kinds)}", red, remedy, notes, advice)


def _wrong(member: Member, share: float | None) -> list[str]:
    if "devices" not in member.facts["gpus"]:
        return []
    found, offered, visible = [], member.offered.get("GPU", 0), visible_gpus(member)
    if offered != visible:
        found.append(f"{member.name}: Ray offers {offered:g} GPUs, CUDA shows {visible}{_mig_hint(member)}")
    exclusive = _exclusive(member)
    if exclusive and share is not None and 0 < share < 1:
        found.append(f"{member.name}: GPU {exclusive} serves one process at a time, but resources.gpu = {share:g}")
    return found


def _notable(member: Member) -> list[str]:
    found = []
    if "devices" not in member.facts["gpus"]:
        why = member.facts["gpus"].get("error", "no nvidia-smi there")
        found.append(f"{member.name}: GPUs not compared ({why})")
    elif exclusive := _exclusive(member):
        found.append(f"{member.name}: GPU {exclusive} serves one process at a time (Exclusive_Process)")
    offered = member.offered.get("GPU", 0)
    if offered and (ratio := member.offered.get("CPU", 0) / offered) < CPUS_PER_GPU:
        found.append(f"{member.name}: {ratio:.2g} CPUs per GPU; fewer than {CPUS_PER_GPU} leave none to augment images")
    return found


def _kinds(member: Member) -> set[str]:
    found = member.facts["gpus"]
    slices = sum(map(len, found.get("slices", {}).values()))
    return {gpu["name"] for gpu in found.get("devices", [])} | ({f"{slices} MIG slices"} if slices else set())


def _exclusive(member: Member) -> str:
    """The indices of the GPUs that only one process at a time can use."""
    devices = member.facts["gpus"]["devices"]
    return ", ".join(gpu["index"] for gpu in devices if gpu["compute_mode"] == "Exclusive_Process")


def visible_gpus(member: Member) -> int:
    """GPUs or MIG slices that CUDA shows to the Ray of a node."""
    chosen = member.environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return 0 if chosen.strip() in ("", "-1", "NoDevFiles") else len(chosen.split(","))
    slices = member.facts["gpus"]["slices"]
    return sum(len(slices.get(gpu["uuid"], [gpu])) for gpu in member.facts["gpus"]["devices"])


def _mig_hint(member: Member) -> str:
    slices = [uuid for of_gpu in member.facts["gpus"]["slices"].values() for uuid in of_gpu]
    named = "MIG-" in member.environment.get("CUDA_VISIBLE_DEVICES", "")
    return f" ({len(slices)} MIG slices, not named in CUDA_VISIBLE_DEVICES)" if slices and not named else ""
