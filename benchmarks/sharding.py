"""Bytes a rank holds of a preset under FSDP2: computed with fake ranks on the meta device, in no memory.

The floor is an equal share of everything; the peer is DDP, where every rank holds everything.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.harness import report
from benchmarks.presets import ROOT
from qdm_pipeline.estimate import shapes
from qdm_pipeline.models.cost import build_on_meta
from qdm_pipeline.models.predictor import PredictorConfig
from qdm_pipeline.presets import parameters
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.optimizer import Ema, Optimizer, OptimizerSettings
from qdm_pipeline.training.parallelize import ParallelSettings, spread

WORLDS = (8, 64)


@contextmanager
def fake_ranks(world: int) -> Iterator[Ranks]:
    """Rank 0 of ``world`` that do not exist."""
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield Ranks(0, world, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def bytes_a_rank(config: PredictorConfig, settings: OptimizerSettings, ranks: Ranks) -> tuple[int, int]:
    """Of weights, gradients, moments and average: of this rank, and of the whole model."""
    model = build_on_meta(config)
    parallel = ParallelSettings(strategy="fsdp", offload_teacher=False, compile=False)
    spread(model, parallel, ranks, "fp32")
    optimizer, ema = Optimizer("model", model, settings, 1, "fp32", Ranks()), Ema(model, 0.999)
    moments = {"AdamW": 2, "Muon": 1}
    mine = whole = 0
    for made in optimizer.optimizers:
        for group in made.param_groups:
            for p in group["params"]:
                local = p.to_local() if isinstance(p, DTensor) else p
                assert local.is_meta, "a parameter was materialised"
                copies = 2 + moments[type(made).__name__]
                mine, whole = mine + 4 * copies * local.numel(), whole + 4 * copies * p.numel()
    for average in ema.shadow.values():
        local = average.to_local() if isinstance(average, DTensor) else average
        mine, whole = mine + 4 * local.numel(), whole + 4 * average.numel()
    buffers = 4 * sum(buffer.numel() for buffer in model.buffers())  # the codebook: every rank's own
    return mine + buffers, whole + buffers


def main() -> None:
    """The presets named on the command line, or ``large``."""
    for name in sys.argv[1:] or ["large"]:
        preset = parameters(ROOT, name)
        config, _ = shapes(preset)
        for world in WORLDS:
            with fake_ranks(world) as ranks:
                mine, whole = bytes_a_rank(config, preset["teacher"].optimizer, ranks)
            report(
                f"teacher of {name}, {world} ranks",
                "GiB a rank",
                {"ours": mine / 2**30, "peer": whole / 2**30, "floor": whole / world / 2**30},
                mine / (whole / world),
                0.0,
                "<= 1.5",
            )


if __name__ == "__main__":
    main()
