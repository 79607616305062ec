"""What memory there is, and how many samples a network can see at once in it."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from qdm_pipeline.models.predictor import PredictorSettings

MEMINFO, LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")  # the machine's, a container's
ALIVE = 14  # tensors of tokens x width in float32 at the peak of a block, without gradient (a test counts)
USED = 0.25  # of what is free: allocators keep about twice what is alive, and others need memory as well


def samples_at_once(size: PredictorSettings, shape: Sequence[int], free: int) -> int:
    """How many samples of latents ``shape`` [C, T, H, W] one pass takes with ``free`` bytes; at least 1."""
    tokens = math.prod(shape[1:]) // math.prod(size.patch)
    return max(1, int(USED * free / (ALIVE * tokens * size.width * 4)))


def total_bytes() -> int | None:
    """Bytes of all GPUs of this machine or, without one, of main memory; None where nobody says."""
    if gpus := torch.cuda.device_count():
        return sum(torch.cuda.get_device_properties(index).total_memory for index in range(gpus))
    return main_memory()


def main_memory() -> int | None:
    """Bytes of main memory that this process may use: the machine's, or its container's (cgroup v2)."""
    if not MEMINFO.exists():
        return None
    total = _meminfo("MemTotal")
    return total if (limit := _limit()) is None else min(total, limit)


def free_bytes(device: torch.device) -> int | None:
    """What this process can still take of a GPU's memory, or, as its part, of main memory.

    None where nobody says: main memory, on anything but Linux.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not MEMINFO.exists():
        return None
    free = _meminfo("MemAvailable")
    if (limit := _limit()) is not None:
        free = min(free, max(0, limit - int(LIMIT.with_name("memory.current").read_text())))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes here, says torch elastic


def _meminfo(name: str) -> int:
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def _limit() -> int | None:
    limit = LIMIT.read_text().strip() if LIMIT.exists() else "max"
    return None if limit == "max" else int(limit)
