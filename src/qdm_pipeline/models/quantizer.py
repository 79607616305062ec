"""Vector quantization with EMA codebooks (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1).

What differs from the usual implementation: the nearest code is searched in chunks, so no tokens x codes
matrix is ever held; a forward pass only *collects* statistics, and one explicit `VectorQuantizer.commit` per
optimizer step moves the codebook, so that critic passes, roll-outs and evaluation cannot; non-finite tokens
are counted and left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.randomness import generator

CHUNK_SCORES = 1 << 21  # scores held at a time: 8 MiB of float32


@settings
class QuantizerSettings:
    """A product codebook: ``groups`` books of ``codebook_size`` codes with ``codebook_dim`` numbers each."""

    codebook_size: int
    codebook_dim: int
    groups: int
    decay: float
    revival_threshold: (
        float  # codes used less than this fraction of the mean use are replaced by data; 0: never
    )

    def __post_init__(self) -> None:
        require(self.codebook_size >= 2, f"codebook_size: found {self.codebook_size}, must be at least 2")
        require(self.codebook_dim >= 1, f"codebook_dim: found {self.codebook_dim}, must be at least 1")
        require(self.groups >= 1, f"groups: found {self.groups}, must be at least 1")
        require(0 <= self.decay < 1, f"decay: found {self.decay}, must be in [0, 1)")
        require(
            0 <= self.revival_threshold < 1,
            f"revival_threshold: found {self.revival_threshold}, must be in [0, 1)",
        )


class Quantized(NamedTuple):
    """What `VectorQuantizer` returns."""

    output: Tensor  # [..., E]: the codes' embedding, with the straight-through gradient
    codes: Tensor  # [..., G] int64
    commitment: Tensor  # []: mean squared distance of the tokens to their codes, gradient to the tokens only


def nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code for tokens [G, N, D] in a codebook [G, K, D]: int64 [G, N].

    argmin |x - e|^2 = argmax (x.e - |e|^2 / 2); peak extra memory is one chunk of scores.
    """
    groups, count, _ = tokens.shape
    transposed, offset = codebook.transpose(1, 2), -0.5 * codebook.square().sum(-1).unsqueeze(1)
    chunk = max(1, CHUNK_SCORES // (groups * codebook.shape[1]))
    codes = torch.empty(groups, count, dtype=torch.int64, device=tokens.device)
    for start in range(0, count, chunk):
        scores = torch.baddbmm(offset, tokens[:, start : start + chunk], transposed)
        codes[:, start : start + chunk] = scores.argmax(-1)
    return codes


class VectorQuantizer(nn.Module):
    """Quantizes embeddings [..., embedding_dim] through a small search space and embeds the codes again.

    h -> project_in -> nearest code in each group -> project_out -> q, with h, q of width ``embedding_dim``.
    """

    codebook: Tensor  # [G, K, D] float32, as are the next two
    counts: Tensor  # [G, K] EMA of uses per step
    initialised: Tensor  # [] bool
    sums: Tensor  # [G, K, D] EMA of the sum of the tokens that chose a code

    def __init__(self, embedding_dim: int, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings = settings
        groups, size, dim = settings.groups, settings.codebook_size, settings.codebook_dim
        self.project_in = nn.Linear(embedding_dim, groups * dim)
        self.project_out = nn.Linear(groups * dim, embedding_dim)
        start = torch.randn(groups, size, dim, generator=generator(0, 0, 0, "codebook"))
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(groups, size))
        self.register_buffer("sums", start.clone())
        self.register_buffer("initialised", torch.tensor(False))
        self._collected: list[tuple[Tensor, Tensor]] = []  # (tokens, codes) since the last commit
        self.non_finite = 0  # tokens left out by all commits so far

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VectorQuantizer":
        """Follow to another device, but keep the codebook in float32 (a bf16 EMA stands still)."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = getattr(self, name)
            if moved.dtype != before.dtype:
                setattr(self, name, before.to(moved.device))
        return self

    def forward(self, embedding: Tensor, collect: bool = False) -> Quantized:
        """Quantize [..., E]; ``collect`` adds these tokens to what the next `commit` learns from."""
        groups, _, dim = self.codebook.shape
        with torch.autocast(embedding.device.type, enabled=False):
            tokens = self.project_in(embedding.to(self.project_in.weight.dtype)).float()
            grouped = tokens.reshape(-1, groups, dim).transpose(0, 1)  # [G, N, D]
            with torch.no_grad():
                codes = nearest(grouped.detach(), self.codebook)
                chosen = self._look_up(codes)
                if collect:
                    self._collected.append((grouped.detach(), codes))
            commitment = (grouped - chosen).square().mean()
            # q + (h - sg(h)) equals q to the bit; h + sg(q - h) does not.
            through = chosen + (grouped - grouped.detach())
            output = self._embed(through).view_as(embedding)
        return Quantized(
            output.to(embedding.dtype), codes.T.reshape(*embedding.shape[:-1], groups), commitment
        )

    def group_embeddings(self) -> Tensor:
        """What every code of every group adds to an embedding: float32 [G, K, E]; the bias comes on top."""
        groups, _, dim = self.codebook.shape
        return self.codebook @ self.project_out.weight.float().unflatten(1, (groups, dim)).permute(1, 2, 0)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """The embedding [..., E] of codes [..., G]."""
        with torch.autocast(codes.device.type, enabled=False):
            output = self._embed(self._look_up(codes.reshape(-1, codes.shape[-1]).T.long()))
        return output.view(*codes.shape[:-1], -1)

    def _look_up(self, codes: Tensor) -> Tensor:  # [G, N] -> [G, N, D]
        return torch.gather(self.codebook, 1, codes.unsqueeze(-1).expand(-1, -1, self.codebook.shape[-1]))

    def _embed(self, chosen: Tensor) -> Tensor:  # [G, N, D] -> [N, E]
        return self.project_out(chosen.transpose(0, 1).flatten(1).to(self.project_out.weight.dtype))

    @torch.no_grad()
    def commit(
        self,
        seed: int,
        step: int,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, float]:
        """Move the codebook once, from everything collected since the last commit on all ranks.

        ``reduce`` sums a tensor over ranks in place; it is called once, also by a rank without tokens. The
        first commit puts the codes onto data. Returns the churn (codes replaced, mean over groups).
        """
        groups, size, dim = self.codebook.shape
        batch = self.counts.new_zeros(
            groups, size, 2 * dim + 2
        )  # counts, sums, candidates and their validity
        counts, sums, candidates, valid = batch.split([1, dim, dim, 1], dim=-1)
        draw = generator(seed, step, rank, "revival")
        for tokens, codes in self._collected:
            finite = tokens.isfinite().all(-1).all(0)
            self.non_finite += int((~finite).sum())
            tokens, codes = tokens[:, finite], codes[:, finite]
            for group in range(groups):
                counts[group, :, 0] += torch.bincount(codes[group], minlength=size)
                sums[group].index_add_(0, codes[group], tokens[group])
            if tokens.shape[1]:
                slots = torch.arange(rank, size, world)  # each rank proposes its share of the candidates
                rows = torch.randint(tokens.shape[1], (groups, len(slots)), generator=draw)
                picked = torch.gather(tokens, 1, rows.to(tokens.device).unsqueeze(-1).expand(-1, -1, dim))
                candidates[:, slots], valid[:, slots] = picked, 1
        self._collected.clear()
        if reduce is not None:
            reduce(batch)
        if not counts.any():
            return {"codes_replaced": 0.0}
        return {
            "codes_replaced": self._update(counts[..., 0], sums, candidates, valid[..., 0] > 0, seed, step)
        }

    def _update(
        self, counts: Tensor, sums: Tensor, candidates: Tensor, valid: Tensor, seed: int, step: int
    ) -> float:
        decay = self.settings.decay
        first = not bool(self.initialised)
        if not first:
            self.counts.lerp_(counts, 1 - decay)
            self.sums.lerp_(sums, 1 - decay)
        mean_use = (counts if first else self.counts).mean(-1, keepdim=True)
        dead = torch.ones_like(valid) if first else self.counts < self.settings.revival_threshold * mean_use
        order = torch.randperm(counts.shape[1], generator=generator(seed, step, 0, "revival order"))
        order = order.to(counts.device)
        dead = dead & valid[:, order]
        self.sums[dead] = (candidates[:, order] * mean_use.unsqueeze(-1))[dead]
        self.counts[dead] = mean_use.expand_as(self.counts)[dead]
        total = self.counts.sum(-1, keepdim=True)
        smoothed = (self.counts + 1e-5) * total / (total + 1e-5 * counts.shape[1])  # Laplace
        self.codebook.copy_(self.sums / smoothed.unsqueeze(-1))
        self.initialised.fill_(True)
        return float(dead.sum()) / len(dead)
