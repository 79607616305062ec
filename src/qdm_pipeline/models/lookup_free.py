"""Quantizers without a learned codebook, for ablations: vector-quantize-pytorch behind our interface."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.models.quantizer import Quantizer, QuantizerSettings, VectorQuantizer, recomputing


class LookupFreeQuantizer(Quantizer):
    """Codes that are points of a fixed grid.

    ``fsq``: each number rounded to equally many levels (Mentzer et al. 2023, arXiv:2309.15505); ``lfq``: to
    its sign, with an entropy loss in place of the commitment (Yu et al. 2023, arXiv:2310.05737); ``bsq``:
    the same on the unit sphere (Zhao et al. 2024, arXiv:2406.07548). Raises `InputError`
    without the extra ``ablations``.
    """

    pending: Tensor  # [G, K] uses on this rank since the last commit

    def __init__(self, embedding_dim: int, settings: QuantizerSettings) -> None:
        super().__init__(embedding_dim, settings)
        try:
            library = import_module("vector_quantize_pytorch")
        except ModuleNotFoundError:
            raise InputError(
                f"quantizer kind {settings.kind!r} needs vector-quantize-pytorch: pip install -e .[ablations]"
            ) from None
        groups, size, dim = settings.groups, settings.codebook_size, settings.codebook_dim
        common = {"dim": groups * dim, "num_codebooks": groups, "keep_num_codebooks_dim": True}
        with torch.device("cpu"):  # the library computes with values, which a meta tensor has not
            if settings.kind == "fsq":
                grid = library.FSQ(levels=[settings.levels] * dim, **common)
            else:
                grid = library.LFQ(codebook_size=size, spherical=settings.kind == "bsq", **common)
            codes = torch.arange(size).unsqueeze(1).expand(-1, groups)
            vectors = grid.indices_to_codes(codes).view(size, groups, dim).transpose(0, 1).float()
        device = torch.get_default_device()
        self.grid = grid.to(device)
        self.register_buffer("codebook", vectors.contiguous().to(device))
        self.register_buffer("pending", torch.zeros(groups, size), persistent=False)

    def _quantize(self, tokens: Tensor, collect: bool, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        rows = tokens.transpose(0, 1).flatten(1).unsqueeze(0)  # [1, N, G D]
        if self.settings.kind == "fsq":
            through, codes = self.grid(rows)
            loss = tokens.new_zeros(())
        else:
            through, codes, loss = self.grid(rows, mask=None if mask is None else mask.unsqueeze(0))
        codes = codes[0].T.long()  # [G, N]
        if collect and not recomputing():
            ones = torch.ones_like(codes, dtype=torch.float32) * (1 if mask is None else mask)
            self.pending.scatter_add_(1, codes, ones)
        through = through[0].unflatten(1, (len(tokens), -1)).transpose(0, 1)
        return self._look_up(codes) + (through - through.detach()), codes, loss

    @torch.no_grad()
    def commit(
        self,
        seed: int,
        step: int,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
        forwards: int = 1,
    ) -> dict[str, Tensor]:
        """Count what was collected on all ranks; a grid has nothing to learn."""
        if reduce is not None:
            reduce(self.pending)
        self.usage += self.pending
        self.forget()
        return {}


def make_quantizer(embedding_dim: int, settings: QuantizerSettings) -> Quantizer:
    """The quantizer of kind ``settings.kind``."""
    if settings.kind == "vq":
        return VectorQuantizer(embedding_dim, settings)
    return LookupFreeQuantizer(embedding_dim, settings)
