"""One rank of `test_processes_move_one_codebook`: quantizer_rank.py RANK WORLD FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer

STEPS, TOKENS = 4, 240


def build(threshold: float) -> VectorQuantizer:
    torch.manual_seed(0)
    settings = QuantizerSettings(
        kind="vq", codebook_size=16, codebook_dim=3, groups=2, decay=0.9, revival_threshold=threshold
    )
    quantizer = VectorQuantizer(12, settings)
    quantizer.initialised.fill_(threshold == 0)  # data initialisation draws from the shares of ranks
    return quantizer


def share(step: int, rank: int, world: int) -> torch.Tensor:
    """Uneven shares of one global batch; with four ranks the last one gets none."""
    batch = torch.randn(TOKENS, 12, generator=torch.Generator().manual_seed(step))
    sizes = {1: [240], 2: [200, 40], 4: [100, 90, 50, 0]}[world]
    return batch.split(sizes)[rank]


def train(rank: int, world: int, made: dict[str, VectorQuantizer]) -> dict:
    calls = 0

    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if world > 1:
            dist.all_reduce(tensor)
        return tensor

    for step in range(STEPS):
        for name, quantizer in made.items():
            quantizer(share(step, rank, world), collect=True)
            quantizer.commit(0, step, rank, world, reduce if name == "plain" else _uncounted(world))
    return {"calls": calls} | {name: quantizer.state_dict() for name, quantizer in made.items()}


def _uncounted(world: int):
    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        if world > 1:
            dist.all_reduce(tensor)
        return tensor

    return reduce


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    made = {"plain": build(0.0), "reviving": build(0.3)} if rank % 2 else None
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
    state = train(rank, world, made or {"plain": build(0.0), "reviving": build(0.3)})
    torch.save(state, folder / f"{rank}-of-{world}.pt")
    if world > 1:
        dist.barrier()  # nobody leaves while another still talks to it
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
