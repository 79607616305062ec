"""Kernel, training step and sampling of the presets on one GPU: prints the table of docs/gpu.md.

Needs torch, einops and numpy and this source: ``PYTHONPATH=src python -m benchmarks.gpu [PRESET ...]``. Sizes
come from ``presets.json``, which ``benchmarks.presets`` writes. ``--tiny``: the same on a CPU at toy size.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.configuration import build
from qdm_pipeline.diffusion.sampler import ddim, renoise
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.models.cost import cost
from qdm_pipeline.models.predictor import Condition, PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.models.search import nearest
from qdm_pipeline.training.denoiser import GuidedDenoiser

DENSE_BF16 = 989e12  # FLOP/s of one H100 or H200
TINY = "--tiny" in sys.argv
DEVICE = torch.device("cpu" if TINY else "cuda")
ROUNDS = 1 if TINY else 10


def milliseconds(act: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median of some rounds after two to warm up."""

    def wait() -> None:
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    taken = []
    for round_ in range(-2, rounds):
        wait()
        started = perf_counter()
        act()
        wait()
        if round_ >= 0:
            taken.append(perf_counter() - started)
    return 1000 * median(taken)


def say(**values: Any) -> None:
    print(
        json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}),
        flush=True,
    )


def search(count: int, size: int, dim: int) -> None:
    """Exact search against one bfloat16 product of the same size."""
    count, size = (count // 64, size // 64) if TINY else (count, size)
    tokens, codebook = (torch.randn(1, n, dim, device=DEVICE) for n in (count, size))
    lowered = tokens[0].bfloat16(), codebook[0].bfloat16().T
    ours = milliseconds(lambda: nearest(tokens, codebook))
    floor = milliseconds(lambda: lowered[0] @ lowered[1])
    exact = torch.cdist(tokens[0, :512].double(), codebook[0].double()).argmin(-1)
    flips = int((nearest(tokens, codebook)[0, :512] != exact).sum())
    case = f"search {count} x {size} x {dim}"
    say(case=case, ms=ours, bf16_product_ms=floor, ratio=ours / floor, flips_of_512=flips, goal="<= 1.3")


def model_of(preset: dict[str, Any]) -> tuple[QuantizedDiffusionPredictor, tuple[int, ...]]:
    """The predictor of a preset, at toy size with ``--tiny``."""
    size = preset["predictor"]["size"]
    if TINY:
        size |= {"width": 64, "depth": 2, "heads": 2}
        preset |= {"batch": 1, "latents": [*preset["latents"][:2], 4, 4]}
    config = build(PredictorConfig, preset["predictor"])
    torch.manual_seed(0)
    return QuantizedDiffusionPredictor(config).to(DEVICE), tuple(preset["latents"])


def train(name: str, preset: dict[str, Any], compiled: bool) -> None:
    """Forward, backward and AdamW of a training step in bfloat16, both paths read."""
    model, shape = model_of(preset)
    model.recompute(preset["recompute"])
    if compiled:
        for block in model.blocks:
            block.compile()
    batch = preset["batch"]
    x0, t = torch.randn(batch, *shape, device=DEVICE), torch.rand(batch, device=DEVICE)
    condition = Condition(torch.zeros(batch, dtype=torch.int64, device=DEVICE))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    step = 0

    def act() -> None:
        nonlocal step
        with torch.autocast(DEVICE.type, torch.bfloat16):
            features = model.features(x0, t, condition).float()
            answers = model.read(features, "continuous"), model.read(features, "quantized", collect=True)
            loss = sum((answer.x0 - x0).square().mean() for answer in answers)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.quantizer.commit(0, step)
        step += 1

    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms = milliseconds(act)
    spent = cost(model.config, shape)
    clips = batch / ms * 1000
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
    how = f"recompute {preset['recompute']}{', compiled' if compiled else ''}"
    say(
        case=f"train {name}, batch {batch}, {how}",
        clips_a_second=clips, tokens_a_second=clips * spent.tokens, mfu=3 * spent.flops * clips / DENSE_BF16,
        peak_gib=peak, goal={"medium": "mfu >= 0.40", "large": "mfu >= 0.45"}.get(name, "shown"),
    )  # fmt: skip


def sample(name: str, preset: dict[str, Any]) -> None:
    """One clip by DDIM with guidance (64 calls) and by a four-step student."""
    model, shape = model_of(preset)
    model.eval()
    schedule, noise = Schedule("flow"), torch.randn(1, *shape, device=DEVICE)
    asked = Condition(torch.zeros(1, dtype=torch.int64, device=DEVICE))
    draw = torch.Generator(DEVICE)

    teacher = GuidedDenoiser(model, asked, 2.5, "continuous")
    student = GuidedDenoiser(model, asked, 1.0, "quantized")
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        slow = milliseconds(lambda: ddim(teacher, noise, schedule.spaced(32), schedule, draw), min(3, ROUNDS))
        fast = milliseconds(lambda: renoise(student, noise, schedule.spaced(4), schedule, draw))
    say(case=f"sample {name}", ddim_32_guided_ms=slow, four_steps_ms=fast, ratio=slow / fast)


if __name__ == "__main__":
    chosen = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    presets = json.loads(Path(__file__).with_name("presets.json").read_text())
    if DEVICE.type == "cuda":
        say(case="device", name=torch.cuda.get_device_name(), torch=torch.__version__)
    for dim in (32, 256):
        search(32768, 16384, dim)
    for name in chosen or ("small", "medium", "large"):
        for compiled in (False,) if TINY else (False, True):
            train(name, presets[name], compiled)
        sample(name, presets[name])
