"""How many processes work together."""

import logging
import os
from pathlib import Path
from typing import Literal

import torch

from qdm_pipeline.errors import InputError

logger = logging.getLogger(__name__)

MOST_ON_CPU = 8  # each process adds its batch and its memory, and over gloo more of them gain little
QUOTA = Path("/sys/fs/cgroup/cpu.max")

WorldSize = int | Literal["auto"]


def processes(world_size: WorldSize, nodes: int = 1) -> int:
    """How many processes this node starts so that all nodes together start ``world_size``.

    ``auto`` is one for each GPU or, where there is none, each CPU core that this process may use, at most 8.
    Raises `InputError` if the processes cannot be shared out evenly.
    """
    if world_size == "auto":
        return torch.cuda.device_count() or decoders(world_size)
    if world_size < 1 or world_size % nodes:
        whole = f"a multiple of the {nodes} nodes" if nodes > 1 else "at least 1"
        raise InputError(f"world_size: found {world_size}, must be auto or {whole}")
    return world_size // nodes


def decoders(world_size: WorldSize) -> int:
    """How many processes decode videos, which is done on CPU cores: ``auto`` does not count GPUs here."""
    return min(_cores(), MOST_ON_CPU) if world_size == "auto" else world_size


def describe(world_size: WorldSize, nodes: int = 1) -> str:
    """The line that says how many processes there will be, and why."""
    count = processes(world_size, nodes)
    if world_size != "auto":
        why = "as world_size says"
    elif torch.cuda.is_available():
        why = "one for each GPU"
    elif count < _cores():
        why = f"no GPU here, {_cores()} CPU cores may be used, auto takes at most {MOST_ON_CPU}"
    else:
        why = f"no GPU here, {_cores()} CPU core(s) may be used"
    where = f"each of {nodes} nodes" if nodes > 1 else "this machine"
    return f"{count} process(es) on {where} ({why})"


def _cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container (cgroup v2)."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota, period = QUOTA.read_text().split() if QUOTA.exists() else ("max", "1")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
