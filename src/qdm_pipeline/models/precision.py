"""In which precision a network computes, and where a computation must not be lowered."""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]  # auto: bf16 where the hardware multiplies it, else fp32


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Matrix products in 16 bits, or not; weights stay as they are. Training in fp16 needs a `LossScale`."""
    low = lowered(device.type, precision)
    return torch.autocast(device.type, low, enabled=low is not None)


def lowered(device_type: str, precision: Precision) -> torch.dtype | None:
    """What matrix products are lowered to, or None."""
    if precision == "fp16":
        return torch.float16
    low = precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device_type))
    return torch.bfloat16 if low else None


@lru_cache
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether the device has instructions for it; elsewhere bfloat16 is many times slower than float32."""
    if device_type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        names = ("amx_bf16", "avx512_bf16", "bf16")  # the last is Arm's
        found = any(torch.cpu.get_capabilities().get(name, False) for name in names)
    if not found:
        logger.info("precision auto: float32, as this %s does not multiply bfloat16", device_type)
    return found


def without_autocast(like: Tensor) -> AbstractContextManager[None]:
    """Leave autocast on the device of ``like``; a meta tensor has none to leave."""
    if like.device.type == "meta":
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def apply_in_full(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer``, a linear one or the identity, outside autocast and in the precision of its weights."""
    with without_autocast(x):
        y: Tensor = layer(x.to(layer.weight.dtype) if isinstance(layer, nn.Linear) else x)
    return y
