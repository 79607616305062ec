"""How much memory a piece of work needs at its worst moment."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(act: Callable[[], object], device: torch.device) -> int:
    """Bytes of the tensors that ``act`` makes and holds at once, beside those that were there before.

    On CUDA the allocator counts. Elsewhere every operation is watched, which takes some 20 microseconds each
    and does not see what a kernel needs while it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        act()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Watch() as watch:
        act()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Counts the bytes of storages from the operation that makes them to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # what is made of other operations is watched by these
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
            given = {storage._cdata for storage in _storages((args, kwargs))}
            for storage in _storages(out):
                if storage._cdata not in given | self._known:
                    self._hold(storage)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        self._known.add(place)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.held -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
