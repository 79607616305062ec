"""The processes of one job: who am I, how many are we, and the few collectives that the project uses."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group is there, which its functions would keep as a default
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among the others; ``Ranks()`` is a single process on the CPU."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Join the process group that the elastic agent describes in the environment.

        Beside NCCL there is a gloo group, so that ranks can agree on numbers on the CPU without waiting for
        their GPUs. ``QDM_COLLECTIVE_TIMEOUT`` is in seconds.
        """
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if world > 1 and not dist.is_initialized():
            seconds = float(os.environ.get("QDM_COLLECTIVE_TIMEOUT", "1800"))
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
        return cls(rank, world, device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def onto(self, batch: Tensor) -> Tensor:
        """``batch`` on this rank's device; a GPU copies it from pinned memory while the CPU goes on."""
        if self.device.type != "cuda":
            return batch.to(self.device)
        return batch.pin_memory().to(self.device, non_blocking=True)

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over ranks; itself when alone.

        Buffers are not broadcast: whoever owns state outside gradients keeps it equal by construction.
        """
        if self.world == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, forward_sync_buffers=False)

    @staticmethod
    def sync(module: nn.Module, now: bool) -> AbstractContextManager[None]:
        """Average the gradients of a backward pass inside over ranks, or, if not ``now``, accumulate them."""
        if now or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return module.no_sync()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of ``tensor`` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of ``tensor`` over all ranks, in place."""
        return self.sum(tensor).div_(self.world)

    def most(self, tensor: Tensor) -> Tensor:
        """Largest of every element of ``tensor`` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()
