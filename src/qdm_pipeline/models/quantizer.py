"""Vector quantization with EMA codebooks (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1).

What differs from the usual implementation: no tokens x codes matrix is ever held (`search.nearest`); a
forward pass only *collects* statistics, and one explicit `VectorQuantizer.commit` per optimizer step moves
the codebook, so that critic passes, roll-outs, recomputation and evaluation cannot; tokens that are not
finite are counted and left out.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.models.precision import apply_in_full, without_autocast
from qdm_pipeline.models.search import nearest, rows_at_once
from qdm_pipeline.randomness import generator


@settings
class QuantizerSettings:
    """A product codebook: ``groups`` books of ``codebook_size`` codes with ``codebook_dim`` numbers each."""

    kind: Literal["vq", "fsq", "lfq", "bsq"]  # all but vq: for ablations, see lookup_free.py
    codebook_size: int
    codebook_dim: int
    groups: int
    decay: float  # of the moving averages of vq
    revival_threshold: float  # codes used less than this fraction of the mean are replaced by data; 0: never

    def __post_init__(self) -> None:
        require(self.codebook_size >= 2, f"codebook_size: found {self.codebook_size}, must be at least 2")
        require(self.codebook_dim >= 1, f"codebook_dim: found {self.codebook_dim}, must be at least 1")
        require(self.groups >= 1, f"groups: found {self.groups}, must be at least 1")
        for name in ("decay", "revival_threshold"):
            require(0 <= getattr(self, name) < 1, f"{name}: found {getattr(self, name)}, must be in [0, 1)")
        size, dim = self.codebook_size, self.codebook_dim
        require(
            self.kind not in ("lfq", "bsq") or size == 2**dim,
            f"codebook_size: found {size}; {self.kind} has 2 ** codebook_dim = {2**dim} codes",
        )
        require(
            self.kind != "fsq" or self.levels**dim == size,
            f"codebook_size: found {size}; fsq has levels ** codebook_dim codes, say {self.levels**dim}",
        )

    @property
    def levels(self) -> int:
        """How many values each number of a code can take, where a code is a point of a grid."""
        return max(2, round(self.codebook_size ** (1 / self.codebook_dim)))


class Quantized(NamedTuple):
    """What a quantizer returns."""

    output: Tensor  # [..., E]: the codes' embedding, with the straight-through gradient
    codes: Tensor  # [..., G] int64
    commitment: Tensor  # []: what pulls tokens to their codes; for vq their mean squared distance


class Quantizer(nn.Module):
    """Embeddings [..., E] -> project_in -> a code for each of G groups -> project_out -> [..., E].

    Where E is already ``groups * codebook_dim``, there are no projections. A kind of quantizer says, in
    ``_quantize``, which of the codes in ``codebook`` a token gets. All of it runs in float32.
    """

    codebook: Tensor  # [G, K, D] float32
    usage: Tensor  # [G, K] uses on all ranks by commits since `take_usage`; not in the state dict
    pending: Tensor  # what this rank has collected since the last commit; not in the state dict

    def __init__(self, embedding_dim: int, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("usage", torch.zeros(settings.groups, settings.codebook_size), persistent=False)
        inner = settings.groups * settings.codebook_dim
        same = embedding_dim == inner
        self.project_in = nn.Identity() if same else nn.Linear(embedding_dim, inner)
        self.project_out = nn.Identity() if same else nn.Linear(inner, embedding_dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantizer":
        """Follow to another device, but keep the codebook in float32 (a bf16 EMA stands still)."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = getattr(self, name)
            if moved.dtype != before.dtype:
                setattr(self, name, before.to(moved.device))
        return self

    def forward(self, embedding: Tensor, collect: bool = False, mask: Tensor | None = None) -> Quantized:
        """Quantize [..., E].

        ``collect`` adds these tokens to what the next commit learns from. Where ``mask`` [...] is False,
        tokens get codes but neither teach the codebook nor count in the commitment.
        """
        with without_autocast(embedding):
            tokens = apply_in_full(self.project_in, embedding).float()
            grouped = tokens.reshape(-1, *self.codebook.shape[::2]).transpose(0, 1)  # [G, N, D]
            mask = None if mask is None else mask.flatten()
            through, codes, commitment = self._quantize(grouped, collect, mask)
            output = self._embed(through).view_as(embedding)
        codes = codes.T.reshape(*embedding.shape[:-1], len(self.codebook))
        return Quantized(output.to(embedding.dtype), codes, commitment)

    def _quantize(self, tokens: Tensor, collect: bool, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [G, N, D] -> codes' vectors [G, N, D] with gradient, codes [G, N], the commitment."""
        raise NotImplementedError

    def commit(
        self,
        seed: int,
        step: int,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
        forwards: int = 1,
    ) -> dict[str, Tensor]:
        """Take in what was collected, once per optimizer step, on every rank; returns metrics."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what was collected since the last commit."""
        self.pending.zero_()

    def logits(self, embedding: Tensor, temperature: float) -> Tensor:
        """How near every code is: float32 [..., G, K] for embeddings [..., E], up to a constant a token.

        -|x - e|^2 / (2 temperature), whose softmax is the choice among codes that are seen through
        normal noise of that variance. Holds tokens x codes numbers, unlike everything else here.
        """
        with without_autocast(embedding):
            tokens = apply_in_full(self.project_in, embedding).float()
            tokens = tokens.unflatten(-1, self.codebook.shape[::2])  # [..., G, D]
            product = torch.einsum("...gd,gkd->...gk", tokens, self.codebook)
            return (product - self.codebook.square().sum(-1) / 2) / temperature

    def expected(self, embedding: Tensor, temperature: float) -> Tensor:
        """The mean embedding [..., E] of the choice that `logits` describes."""
        with without_autocast(embedding):
            choice = self.logits(embedding, temperature).softmax(-1)
            mean = torch.einsum("...gk,gkd->...gd", choice, self.codebook).flatten(-2)
            return apply_in_full(self.project_out, mean).to(embedding.dtype)

    def take_usage(self) -> Tensor:
        """How often each code was collected, on all ranks, since the last call: [G, K]."""
        usage = self.usage.clone()
        self.usage.zero_()
        return usage

    def group_embeddings(self) -> Tensor:
        """What every code of every group adds to an embedding: float32 [G, K, E]; `bias` comes on top."""
        groups, _, dim = self.codebook.shape
        if isinstance(self.project_out, nn.Linear):
            weight = self.project_out.weight.float()
        else:
            weight = torch.eye(groups * dim, device=self.codebook.device)
        return self.codebook @ weight.unflatten(1, (groups, dim)).permute(1, 2, 0)

    @property
    def bias(self) -> Tensor:
        """What an embedding has beside its codes: [E]."""
        if isinstance(self.project_out, nn.Linear):
            return self.project_out.bias
        return self.codebook.new_zeros(self.codebook.shape[0] * self.codebook.shape[2])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """The embedding [..., E] of codes [..., G]."""
        with without_autocast(codes):
            output = self._embed(self._look_up(codes.reshape(-1, codes.shape[-1]).T.long()))
        return output.view(*codes.shape[:-1], -1)

    def _look_up(self, codes: Tensor) -> Tensor:  # [G, N] -> [G, N, D]
        rows = self.codebook.flatten(0, 1).index_select(0, self._places(codes))
        return rows.view(*codes.shape, self.codebook.shape[-1])

    def _places(self, codes: Tensor) -> Tensor:  # [G, N] -> [G N], among the codes of all groups
        groups, size, _ = self.codebook.shape
        return (codes + size * torch.arange(groups, device=codes.device)[:, None]).flatten()

    def _embed(self, chosen: Tensor) -> Tensor:  # [G, N, D] -> [N, E]
        return apply_in_full(self.project_out, chosen.transpose(0, 1).flatten(1))


class VectorQuantizer(Quantizer):
    """A codebook that follows its tokens by moving averages; codes that nobody uses are put onto data."""

    counts: Tensor  # [G, K] EMA of uses per step, float32 as all state
    sums: Tensor  # [G, K, D] EMA of the sum of the tokens that chose a code
    initialised: Tensor  # [] bool
    pending: Tensor  # [3 + 2 G K (D + 1)]: `tally`, `collected`, candidates

    def __init__(self, embedding_dim: int, settings: QuantizerSettings) -> None:
        super().__init__(embedding_dim, settings)
        groups, size, dim = settings.groups, settings.codebook_size, settings.codebook_dim
        draw = generator(0, 0, 0, "codebook")
        start = torch.randn(groups, size, dim, generator=draw, device="cpu").to(torch.get_default_device())
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(groups, size))
        self.register_buffer("sums", start.clone())
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("pending", torch.zeros(3 + 2 * groups * size * (dim + 1)), persistent=False)
        self._seen: list[tuple[Tensor, Tensor]] = []  # of forward passes: tokens [G, N, D], which may teach

    def learn_codebook(self) -> None:
        """Let gradients move the codes, as parameters; averages and `commit` have no say any more."""
        start = self.codebook.detach().clone()
        del self.codebook
        self.codebook = nn.Parameter(start)

    @property
    def tally(self) -> Tensor:
        """Left-out tokens; of the others |x|^2 and |x - e|^2, summed; since the last commit: [3]."""
        return self.pending[:3]

    @property
    def collected(self) -> Tensor:
        """Sum of the tokens of each code, and their count, since the last commit: [G, K, D + 1]."""
        groups, size, dim = self.codebook.shape
        return self.pending[3 : 3 + groups * size * (dim + 1)].view(groups, size, dim + 1)

    def _quantize(self, tokens: Tensor, collect: bool, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            codes = nearest(tokens.detach(), self.codebook)
        chosen = self._look_up(codes)
        if collect and not recomputing():
            with torch.no_grad():
                self._collect(tokens.detach(), codes, chosen.detach(), mask)
        if mask is None:
            rows = rows_at_once(tokens)
            parts = zip(tokens.split(rows, 1), chosen.split(rows, 1), strict=True)
            commitment = torch.stack([torch.dist(*part).square() for part in parts]).sum() / tokens.numel()
        else:
            distance = torch.where(mask[:, None], tokens - chosen, 0)
            commitment = distance.square().sum() / (mask.sum() * len(tokens) * tokens.shape[2]).clamp(min=1)
        # q + (h - sg(h)) equals q to the bit; h + sg(q - h) does not.
        through = chosen + (tokens - tokens.detach()) if torch.is_grad_enabled() else chosen
        return through, codes, commitment

    def _collect(self, tokens: Tensor, codes: Tensor, chosen: Tensor, mask: Tensor | None) -> None:
        groups, _, dim = self.codebook.shape
        finite = tokens.sum(-1).isfinite().all(0)  # [N]
        asked = torch.ones_like(finite) if mask is None else mask
        learned = finite & asked
        place, collected = self._places(codes).view_as(codes), self.collected.view(-1, dim + 1)
        for start in range(0, tokens.shape[1], rows := rows_at_once(tokens)):
            part = slice(start, start + rows)
            kept = torch.where(learned[part, None], tokens[:, part], 0)
            collected[:, :-1].index_add_(0, place[:, part].flatten(), kept.flatten(0, 1))
            self.tally[1] += torch.linalg.vector_norm(kept).square()
            self.tally[2] += torch.dist(kept, torch.where(learned[part, None], chosen[:, part], 0)).square()
        collected[:, -1].index_add_(0, place.flatten(), learned.float().repeat(groups))
        self.tally[0] += (asked & ~finite).sum()
        self._seen.append((tokens, learned))

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
        """Move the codebook once, from everything collected since the last commit on all ranks.

        ``reduce`` sums a tensor over ranks in place; it is called once, also by a rank without tokens.
        ``forwards`` is how many forward passes each rank has collected from: the codebook depends on those of
        all ranks together, not on who made which. The first commit puts the codes onto data. Returns, over
        all ranks, under ``codebook/``: ``replaced``, the churn in codes, mean over groups; ``error``,
        relative to the tokens' variance; tokens ``left_out``.
        """
        first = not bool(self.initialised)
        slots = self.settings.codebook_size if first else max(1, self.settings.codebook_size // 16)
        candidates = self._propose(slots, seed, step, rank, world, forwards)
        if reduce is not None:
            reduce(self.pending[: candidates.storage_offset() + candidates.numel()])
        sums, counts = self.collected[..., :-1], self.collected[..., -1]
        error = self._error(sums, counts)
        replaced = self._update(counts, sums, candidates, first, seed, step) if counts.any() else 0.0
        self.usage += counts
        metrics = {
            "codebook/replaced": torch.tensor(replaced),
            "codebook/error": error,
            "codebook/left_out": self.tally[0].clone(),
        }
        self.forget()
        return metrics

    def forget(self) -> None:
        """Drop what was collected since the last commit."""
        super().forget()
        self._seen = []

    def _error(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Sum of |x - e|^2 over that of |x - mean|^2."""
        norm, distance = self.tally[1:].double()
        total = sums.sum(1, dtype=torch.float64)
        spread = norm - (total.square() / counts.sum(1, keepdim=True).clamp(min=1)).sum()
        return distance / spread.clamp(min=torch.finfo(torch.float64).tiny)

    def _propose(self, slots: int, seed: int, step: int, rank: int, world: int, forwards: int) -> Tensor:
        """Put this rank's share of tokens that may replace codes, each with a 1 behind it: [G, slots, D + 1].

        Drawn by (seed, step, forward pass among all of the step), so that a resume draws them again.
        """
        groups, size, dim = self.codebook.shape
        start = 3 + self.collected.numel()
        proposed = self.pending[start : start + groups * slots * (dim + 1)].view(groups, slots, dim + 1)
        for number, (tokens, learned) in enumerate(self._seen[-forwards:], rank * forwards):
            mine = slice(number, None, world * forwards)
            count = len(range(slots)[mine])
            if tokens.shape[1] and count:
                draw = generator(seed, step, number, "revival")
                rows = torch.randint(tokens.shape[1], (groups, count), generator=draw).to(tokens.device)
                offered = torch.gather(tokens, 1, rows.unsqueeze(-1).expand(-1, -1, dim))
                proposed[:, mine, :-1] = torch.where(learned[rows, None], offered, 0)
                proposed[:, mine, -1] = learned[rows].float()
        return proposed

    def _update(
        self, counts: Tensor, sums: Tensor, candidates: Tensor, first: bool, seed: int, step: int
    ) -> float:
        """Moving averages, replaced codes, new codebook: the same on every rank. Returns the churn."""
        weight = 1.0 if first else 1 - self.settings.decay
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        mean_use = self.counts.mean(-1, keepdim=True)
        limit = torch.inf if first else self.settings.revival_threshold * mean_use
        order = torch.randperm(candidates.shape[1], generator=generator(seed, step, 0, "revival order"))
        offered = candidates[:, order.to(candidates.device)]
        dead = self.counts < limit
        turn = dead.cumsum(1) - 1  # the n-th dead code gets the n-th candidate, if there is one
        slot = turn.clamp(max=offered.shape[1] - 1).clamp(min=0)
        dead &= (turn < offered.shape[1]) & (offered[..., -1].gather(1, slot) > 0)
        group, code = dead.nonzero(as_tuple=True)
        self.sums[group, code] = offered[group, slot[group, code], :-1] * mean_use[group]
        self.counts[group, code] = mean_use[group, 0]
        total = self.counts.sum(-1, keepdim=True)
        smoothed = (self.counts + 1e-5) * total / (total + 1e-5 * counts.shape[1])  # Laplace
        torch.div(self.sums, smoothed.unsqueeze(-1), out=self.codebook)
        self.initialised.fill_(True)
        return len(group) / len(dead)


def recomputing() -> bool:
    """Whether this is a forward pass inside a backward pass: activation checkpointing, seen before."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
