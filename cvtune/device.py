"""What is asked of a GPU beside training on it: the memory held, a limit to it, and to wait until it is done."""

from __future__ import annotations

import torch

CONTEXT = 5 * 10**8  # bytes that a process holds on a GPU beside its tensors, roughly


class Cuda:
    """The GPU of this process."""

    def begin(self) -> None:
        """Forget what was held before."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def held(self) -> tuple[int, int, int]:
        """Bytes: most that the allocator held since `begin`, what this process holds beside it, and of the GPU.

        The second is right where no other process uses the GPU.
        """
        wait()
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.max_memory_reserved(), max(0, total - free - torch.cuda.memory_reserved()), total


def wait() -> None:
    """Until the device has done all that it was asked to do; a CPU has."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def limit_memory(share: float) -> None:
    """Keep to a share of the GPU, 0..1: who needs more than its share runs out of memory itself, and no other trial.

    A share of 1, or no GPU here, is no limit.
    """
    if 0 < share < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share / 2, share - CONTEXT / total))


def allowed_bytes(device: torch.device) -> float:
    """What this process may use of a GPU's memory, see `limit_memory`. A device without index is the current one."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.get_per_process_memory_fraction(index) * torch.cuda.get_device_properties(index).total_memory
