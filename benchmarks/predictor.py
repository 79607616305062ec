"""A training step of the predictor without its optimizer; peer: diffusers' WanTransformer3DModel of its size.

The floor is the matrix products of the linear layers alone, forward and backward.
"""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch._functorch.config
from diffusers import WanTransformer3DModel
from torch import Tensor

from benchmarks.harness import Act, peak_memory, report, spread, take_turns
from qdm_pipeline.models.predictor import (
    Condition,
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
)
from qdm_pipeline.models.quantizer import QuantizerSettings
from qdm_pipeline.training.parallelize import COMPILED_SHARE

WIDTH, DEPTH, HEADS, CHANNELS, WORDS, BATCH = 512, 6, 8, 16, 16, 2
SHAPES = ((CHANNELS, 5, 8, 8), (CHANNELS, 5, 16, 16))  # 320 and 1280 tokens


def our_model() -> QuantizedDiffusionPredictor:
    quantizer = QuantizerSettings(
        kind="vq", codebook_size=4096, codebook_dim=2, groups=8, decay=0.99, revival_threshold=0.1
    )
    size = PredictorSettings(
        width=WIDTH, depth=DEPTH, heads=HEADS, patch=(1, 1, 1), attention="full", embedding_dim=64,
        residual_dim=0, quantizer=quantizer,
    )  # fmt: skip
    words = tuple(map(str, range(1000)))
    config = PredictorConfig(
        size=size, latent_channels=CHANNELS, classes=(), vocabulary=words, caption_length=WORDS
    )
    return QuantizedDiffusionPredictor(config)


def peer_model() -> Any:  # mypy does not see diffusers
    return WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS,
        in_channels=CHANNELS, out_channels=CHANNELS, text_dim=WIDTH, freq_dim=256, ffn_dim=4 * WIDTH,
        num_layers=DEPTH, cross_attn_norm=True,
    )  # fmt: skip


def floor_act(tokens: int) -> Act:
    x = torch.randn(tokens, WIDTH)
    shapes = DEPTH * [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH),
                      (4 * WIDTH, WIDTH)]  # fmt: skip
    weights = [torch.randn(a, b) for a, b in shapes]
    wide = torch.randn(tokens, 4 * WIDTH)

    def act() -> None:
        for weight in weights:
            source = x if weight.shape[0] == WIDTH else wide
            out = source @ weight
            out @ weight.T  # gradient of the input
            source.T @ out  # and of the weight

    return act


def run(shape: tuple[int, ...], mode: str) -> None:
    """One size; both models eager or compiled, ours keeping all or recomputing pointwise steps."""
    torch.manual_seed(0)
    latents, t = torch.randn(BATCH, *shape), torch.rand(BATCH)
    words, text = torch.randint(1000, (BATCH, WORDS)), torch.randn(BATCH, WORDS, WIDTH)
    ours, peer = our_model(), peer_model()
    recomputed, compiled = "recomputed" in mode, "compiled" in mode
    ours.recompute("pointwise" if recomputed else "nothing")
    sizes: dict[str, torch.nn.Module] = {"ours": ours, "peer": peer}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in sizes.items()}

    def our_answer(x: Tensor) -> Tensor:
        answer: Tensor = ours(x, t, Condition(words=words)).x0
        return answer

    def peer_answer(x: Tensor) -> Tensor:
        answer: Tensor = peer(x, 1000 * t, text, return_dict=False)[0]
        return answer

    def step(model: torch.nn.Module, answer: Callable[[Tensor], Tensor]) -> Act:
        made = torch.compile(answer) if compiled else answer

        def act() -> None:
            made(latents).square().mean().backward()
            model.zero_grad(set_to_none=True)

        return act

    tokens = BATCH * shape[1] * shape[2] * shape[3]
    acts = {"ours": step(ours, our_answer), "peer": step(peer, peer_answer), "floor": floor_act(tokens)}
    with torch._functorch.config.patch(activation_memory_budget=COMPILED_SHARE if recomputed else 1.0):
        acts["ours"]()  # compiled now, as `spread` has it compiled
    case = f"{tokens} tokens, {', '.join(f'{n} {c / 1e6:.1f} M' for n, c in parameters.items())} parameters"
    case += f", {mode}"
    seconds = take_turns(acts, 7)
    middle = {name: median(times) for name, times in seconds.items()}
    ratio = middle["ours"] / middle["peer"]
    report(case, "seconds forward and backward", middle, ratio, spread(seconds["ours"]), "<= 1")
    memory = {name: peak_memory(acts[name]) for name in ("ours", "peer")}
    report(case, "extra MiB of a step", memory, memory["ours"] / memory["peer"], 0.0, "<= 0.9")


if __name__ == "__main__":
    modes = ("eager", "pointwise recomputed", "compiled", "compiled, pointwise recomputed")
    for mode in sys.argv[1:] or modes:
        for shape in SHAPES:
            run(shape, mode)
