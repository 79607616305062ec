"""How many samples a network can see at once in the memory that is free."""

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


def free_bytes(device: torch.device) -> int | None:
    """What this process can still take of a GPU's memory, or, as its part, of main memory.

    None where nobody says: main memory, on anything but Linux.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not MEMINFO.exists():
        return None
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    if LIMIT.exists() and (limit := LIMIT.read_text().strip()) != "max":
        free = min(free, max(0, int(limit) - int(LIMIT.with_name("memory.current").read_text())))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes here, says torch elastic
