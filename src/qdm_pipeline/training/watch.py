"""What is looked for while a training runs: who made it diverge, and whether the ranks are still alike."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.shards import ShardSet

NAMED = 5  # clips in a message


class Watched(Protocol):
    """What a divergence is traced to."""

    last_loss: Tensor | None  # of this rank, before ranks are averaged

    def suspects(self, step: int) -> list[str]:
        """Ids of the clips with values that are not finite among those that this rank saw in ``step``."""


def traced(error: DivergenceError, task: Watched, step: int, ranks: Ranks) -> DivergenceError:
    """The error with the ranks and clips that values which are not finite came from; on all ranks."""
    loss = task.last_loss
    mine = (loss is not None and not bool(loss.isfinite().all()), task.suspects(step))
    everyone = ranks.gather(mine)
    found = [f"rank {rank}" for rank, (broken, _) in enumerate(everyone) if broken]
    clips = sorted({clip for _, suspects in everyone for clip in suspects})
    said = str(error)
    if found:
        said += f"; loss not finite on {', '.join(found)}"
    if clips:
        more = f" and {len(clips) - NAMED} more" if len(clips) > NAMED else ""
        said += f"; values not finite in clip {', '.join(clips[:NAMED])}{more}"
    return DivergenceError(said)


def not_finite(latents: ShardSet, rows: Tensor) -> list[str]:
    """Ids of the clips at ``rows`` whose latents are not finite."""
    ids, found = latents.column("id"), list[str]()
    for part in latents.parts(rows, len(rows)):
        broken = ~latents.gather("latent", part).isfinite().flatten(1).all(1)
        found += [str(ids[row]) for row in part[broken].tolist()]
    return found


def check_replicas(kind: str, step: int, state: dict[str, Any], ranks: Ranks) -> None:
    """Raise `DivergenceError`, on all ranks, if some rank's ``state`` differs by a single bit.

    What is compared is two sums of every tensor's bits, one of them weighted by position.
    """
    if ranks.world == 1:
        return
    leaves, _ = tree_flatten_with_path(state)
    tensors = [(keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()]
    mine = torch.stack([_fingerprint(tensor) for _, tensor in tensors]).cpu()
    everyone = torch.stack(ranks.gather(mine))  # [R, N, 2]
    common = everyone.mode(0).values
    differs = (everyone != common).any(2)  # [R, N]
    if not differs.any():
        return
    ranks_found = [str(rank) for rank in differs.any(1).nonzero().flatten().tolist()]
    names = [tensors[index][0] for index in differs.any(0).nonzero().flatten().tolist()]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    who = f"rank {', '.join(ranks_found)}" if ranks.world > 2 else "the two ranks"
    raise DivergenceError(
        f"{kind}, step {step}: {who} drifted apart in {names[0]}{more}; nothing was saved: an earlier "
        "checkpoint is whole, and the same command continues from it"
    )


def _fingerprint(tensor: Tensor) -> Tensor:
    """Two int64 sums [2] over the bits of a tensor, which wrap around."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().reshape(-1)
    bits = flat.view(kinds[flat.element_size()]).long()
    position = torch.arange(1, len(bits) + 1, device=bits.device)
    return torch.stack([bits.sum(), (bits * position).sum()])
