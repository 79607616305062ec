"""What a predictor costs, counted by running it without data, so that no formula can be out of date."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from qdm_pipeline.models.predictor import Condition, PredictorConfig, QuantizedDiffusionPredictor


class Cost(NamedTuple):
    """Size and work of a predictor."""

    parameters: int
    tokens: int  # that the Transformer sees, a clip
    flops: int  # of one forward pass of one clip through the quantized path; training takes three times that


@register_flop_formula(torch.ops.qdm_pipeline.nearest)
def _nearest_flops(tokens: torch.Size, codebook: torch.Size, out_shape: torch.Size | None = None) -> int:
    groups, count, dim = tokens
    return 2 * groups * count * codebook[1] * (dim + 1)


def build_on_meta(config: PredictorConfig) -> QuantizedDiffusionPredictor:
    """The predictor with shapes and no memory."""
    with torch.device("meta"):
        return QuantizedDiffusionPredictor(config)


def cost(config: PredictorConfig, latent_shape: tuple[int, ...]) -> Cost:
    """Cost for one clip of latents [C, T, H, W]; matrix products only, as is usual in utilization figures.

    Modulation is counted as it is done: once a sample, not once a token.
    """
    model = build_on_meta(config)
    with torch.device("meta"):
        x, t = torch.empty(1, *latent_shape), torch.empty(1)
        text = config.text
        condition = Condition(
            torch.zeros(1, dtype=torch.int64) if config.classes else None,
            torch.zeros(1, config.caption_length, dtype=torch.int64) if config.vocabulary else None,
            torch.zeros(1, text.length, text.width) if text else None,
            torch.ones(1, dtype=torch.int64) if text else None,
        )
        counter = FlopCounterMode(display=False)
        with counter:
            model(x, t, condition, "quantized")
    patch = config.size.patch
    tokens = 1
    for size, step in zip(latent_shape[1:], patch, strict=True):
        tokens *= size // step
    return Cost(sum(p.numel() for p in model.parameters()), tokens, counter.get_total_flops())
