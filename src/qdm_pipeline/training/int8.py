"""Weights of the Transformer blocks as 8-bit integers, with torchao."""

import logging
from typing import Literal

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor

# int8_weight: weights alone, a scale a row, products in floats;
# int8_dynamic: activations as well, a scale a token, found at every call; products in integers.
Weights = Literal["full", "int8_weight", "int8_dynamic"]


def quantize_weights(model: QuantizedDiffusionPredictor, weights: Weights) -> None:
    """Round the linear layers of all blocks in place; everything outside of them stays as it is.

    What stays, few numbers all: patch and time embedding, modulation, codebook, ``final_proj``. Raises
    `InputError` if torchao is not installed.
    """
    if weights == "full":
        return
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of kernels for GPUs that are not there
    try:
        from torchao import quantization
    except ImportError:
        raise InputError(f"weights: {weights} needs torchao: pip install 'qdm-pipeline[int8]'") from None
    kinds = {
        "int8_weight": quantization.Int8WeightOnlyConfig,
        "int8_dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
    }
    quantization.quantize_(model.blocks, kinds[weights]())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of everything that a model's parameters and buffers are made of."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(part.nbytes for tensor in tensors for part in _plain(tensor))


def _plain(tensor: Tensor) -> list[Tensor]:
    """The tensors that a tensor of torchao is made of, or itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain(getattr(tensor, name))]
