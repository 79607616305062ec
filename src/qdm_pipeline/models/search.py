"""The nearest code of every token, exactly, without ever holding a tokens x codes matrix."""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

# Scores held at a time: on a CPU what its cache nearly takes (8 MiB, for short codes half), elsewhere what
# fills the device.
CHUNK_SCORES = {"cpu": 1 << 21}
CHUNK_SCORES_DEVICE = 1 << 26
SHORT = 64  # numbers of a code, up to which the passes over scores cost more than the product
LANES = 32
ROWS = 1024  # tokens, or codes, of which copies are held at a time on a CPU


def rows_at_once(like: Tensor) -> int:
    """Tokens, or codes, to copy at a time: what a CPU's cache takes; a GPU wants few and large kernels."""
    return ROWS if like.device.type == "cpu" else 1 << 24


@torch.library.custom_op("qdm_pipeline::nearest", mutates_args=())
def nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code for float32 tokens [G, N, D] in a codebook [G, K, D]: int64 [G, N].

    argmin |x - e|^2 = argmax (x.e - |e|^2 / 2). An argmax over all codes is slower than the product itself
    on a CPU, so the codes are laid out as LANES rows: the maximum over rows is a vectorised pass, and the
    index is looked for among K / LANES maxima and then among LANES rows. One operator for `torch.compile`,
    which would unroll the chunks otherwise. Among codes that are equally near one is chosen by its place
    alone; a token that is not finite gets any. A GPU has kernels of its own, see search_gpu.py.
    """
    if tokens.is_cuda and (fused := _fused()) is not None:
        return fused(tokens, codebook)
    groups, count, dim = tokens.shape
    size, columns = codebook.shape[1], -(-codebook.shape[1] // LANES)
    offset = codebook.new_full((groups, 1, columns * LANES), -torch.inf)  # codes that pad: infinitely far
    for number, part in enumerate(codebook.split(ROWS, 1)):
        offset[:, 0, number * ROWS :][:, : part.shape[1]] = -0.5 * part.square().sum(-1)
    table = codebook if columns * LANES == size else F.pad(codebook, (0, 0, 0, columns * LANES - size))
    held_scores = CHUNK_SCORES.get(tokens.device.type, CHUNK_SCORES_DEVICE) >> (dim <= SHORT)
    chunk = max(1, held_scores // (groups * columns * LANES))
    codes = torch.empty(groups, count, dtype=torch.int64, device=tokens.device)
    scores = tokens.new_empty(groups, min(chunk, count), columns * LANES)
    for start in range(0, count, chunk):
        part = tokens[:, start : start + chunk]
        held = scores[:, : part.shape[1]]
        torch.baddbmm(offset, part, table.transpose(1, 2), out=held)
        lanes = held.unflatten(-1, (LANES, columns))
        column = lanes.amax(2).argmax(-1, keepdim=True)
        row = lanes.gather(3, column.unsqueeze(2).expand(-1, -1, LANES, -1)).squeeze(3).argmax(-1)
        codes[:, start : start + chunk] = row * columns + column.squeeze(-1)
    return codes.clamp_(max=size - 1)


@nearest.register_fake
def _(tokens: Tensor, codebook: Tensor) -> Tensor:
    return torch.empty(tokens.shape[:2], dtype=torch.int64, device=tokens.device)


@lru_cache
def _fused() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The search in Triton, which builds of torch for GPUs bring along, on most systems."""
    try:
        from qdm_pipeline.models.search_gpu import nearest_gpu
    except ImportError as error:
        logger.warning("search: %s; codes are searched several times slower without it", error)
        return None
    return nearest_gpu
