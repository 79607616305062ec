"""How a model is spread over ranks: replicated (DDP) or sharded (FSDP2). Models know nothing of it.

What is saved is always whole tensors (`whole`), so a checkpoint fits any strategy and any number of ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.models.precision import Precision, lowered
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor
from qdm_pipeline.ranks import Ranks

# Of what a compiled block would keep for backward by itself; less than that cost time (docs/decisions.md).
COMPILED_SHARE = 0.9
# Forms of one block: width, batch, precision, with gradients or without, for each role. torch stops at 8
# and runs the ninth uncompiled; four models compiled in one process came to that.
COMPILED_FORMS = 64


@settings
class ParallelSettings:
    """One choice for all roles of a training."""

    strategy: Literal["ddp", "fsdp"]  # every rank holds all, or its share, of weights, moments and average
    offload_teacher: bool  # with fsdp: the teacher's share waits in main memory
    compile: bool  # each Transformer block, with torch.compile

    def __post_init__(self) -> None:
        require(
            self.strategy == "fsdp" or not self.offload_teacher,
            "offload_teacher: found true with strategy 'ddp', only 'fsdp' can",
        )


def spread(
    predictor: QuantizedDiffusionPredictor,
    settings: ParallelSettings,
    ranks: Ranks,
    precision: Precision,
    offload: bool = False,
) -> None:
    """Compile and shard a predictor in place, block by block, where the settings say so.

    A compiler that is to recompute pointwise steps chooses them itself, within ``COMPILED_SHARE``.
    """
    if settings.compile:
        from torch._dynamo import config  # two seconds

        config.recompile_limit = COMPILED_FORMS
        for block in predictor.blocks:
            block.compile()
        if any(block.recompute for block in predictor.blocks):
            torch._functorch.config.activation_memory_budget = COMPILED_SHARE
    if settings.strategy == "ddp" or ranks.world == 1:
        return
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    # Blocks gather the precision that autocast gives their products anyway; the rest stays float32.
    low = lowered(ranks.device.type, precision)
    policy = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
    pin = ranks.device.type != "cpu"
    away: OffloadPolicy = CPUOffloadPolicy(pin_memory=pin) if offload else OffloadPolicy()
    for block in predictor.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=away)
    fully_shard(predictor, mesh=mesh, offload_policy=away)
    for method in ("features", "read"):
        register_fsdp_forward_method(predictor, method)


def shard(module: nn.Module, settings: ParallelSettings, ranks: Ranks) -> None:
    """Shard a small module in place as a whole, beside predictors that are."""
    if settings.strategy == "fsdp" and ranks.world > 1:
        fully_shard(module, mesh=init_device_mesh(ranks.device.type, (ranks.world,)))


def wrap(module: nn.Module, settings: ParallelSettings, ranks: Ranks) -> nn.Module:
    """``module``, whose predictors were spread, so that backward averages its gradients over ranks."""
    return ranks.wrap(module) if settings.strategy == "ddp" else module


@contextmanager
def sync(module: nn.Module, ranks: Ranks, now: bool) -> Iterator[None]:
    """Average the gradients of the backward pass inside over ranks, or, if not ``now``, accumulate them."""
    with ranks.sync(module, now):
        for part in _sharded(module):
            part.set_requires_gradient_sync(now)
        yield


def reshard(module: nn.Module) -> None:
    """Give back what a forward pass without backward has gathered."""
    for part in _sharded(module):
        part.reshard()


def whole(tree: Any) -> Any:
    """A tree of tensors with every shard gathered; called on all ranks."""
    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, tree)


def like(value: Tensor, target: Tensor) -> Tensor:
    """This rank's part of a whole tensor, laid out as ``target``."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(
        value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
    )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The whole state dict of a module, however it is spread; called on all ranks."""
    reshard(module)
    gathered: dict[str, Tensor] = whole(module.state_dict())
    return gathered


def load_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `state_of`."""
    reshard(module)
    target = module.state_dict()
    module.load_state_dict(
        {name: like(v, target[name]) if name in target else v for name, v in state.items()}
    )


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]
