"""Kernel, training step, distillation and sampling of the presets on one GPU: the figures of docs/gpu.md.

Needs torch, einops, numpy, safetensors and this source: ``PYTHONPATH=src python -m benchmarks.gpu [PRESET
...]``. Sizes come from ``presets.json``, which ``benchmarks.presets`` writes. ``--tiny``: a CPU's sizes.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from qdm_pipeline.configuration import build
from qdm_pipeline.diffusion.sampler import ddim, renoise
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.models.cost import cost
from qdm_pipeline.models.predictor import Condition, PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.models.search import nearest
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.distill import DistillTask
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.model_files import save_predictor
from qdm_pipeline.training.parallelize import ParallelSettings, spread
from qdm_pipeline.training.teacher import ScheduleSettings
from qdm_pipeline.video.shards import write_shards

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
    ours = milliseconds(lambda: [nearest(tokens, codebook) for _ in range(10)]) / 10  # launched ahead
    floor = milliseconds(lambda: [lowered[0] @ lowered[1] for _ in range(10)]) / 10
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
    with DEVICE:
        return QuantizedDiffusionPredictor(config), tuple(preset["latents"])


def ways(name: str, preset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The preset with what one GPU may want otherwise: a compiler, a larger batch, nothing recomputed."""
    yield preset | {"compile": False}
    if not TINY:
        yield preset | {"compile": True}
        yield from {
            "medium": [preset | {"compile": True, "batch": 128}],
            "large": [preset | {"compile": True, "recompute": "nothing"}],
        }.get(name, [])


def train(name: str, preset: dict[str, Any]) -> None:
    """Forward, backward and AdamW of a training step in bfloat16, both paths read."""
    model, shape = model_of(preset)
    model.recompute(preset["recompute"])
    spread(
        model,
        ParallelSettings(strategy="ddp", offload_teacher=False, compile=preset["compile"]),
        Ranks(device=DEVICE),
        "bf16",
    )
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

    forget_peak()
    ms = milliseconds(act)
    spent = cost(model.config, shape)
    clips = batch / ms * 1000
    how = f"recompute {preset['recompute']}{', compiled' if preset['compile'] else ''}"
    say(
        case=f"train {name}, batch {batch}, {how}",
        ms=ms, clips_a_second=clips, tokens_a_second=clips * spent.tokens,
        mfu=3 * spent.flops * clips / DENSE_BF16, peak_gib=peak_gib(),
        goal={"medium": "mfu >= 0.40", "large": "mfu >= 0.45"}.get(name, "shown"),
    )  # fmt: skip


def forget_peak() -> None:
    """Count peak memory from here."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Peak memory of the GPU since `forget_peak`."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0


def distil(name: str, preset: dict[str, Any], seconds: float = 0.1 if TINY else 40.0) -> None:
    """Student updates, each with its critic updates, of an untrained teacher on random latents for a while.

    The flops are those that torch counts in the first updates: all forward and backward passes of all roles.
    """
    model, shape = model_of(preset)
    bounds = {
        "most_mean": 1e9,
        "most_std": 1e9,
        "least_std": 0.0,
        "least_diversity": 0.0,
        "least_perplexity": 0.0,
    }
    guard = preset["distill"]["guard"] | bounds
    settings = build(DistillSettings, preset["distill"] | {"guard": guard})
    batch = min(preset["batch"], settings.micro_batch)
    settings = replace(settings, validation=None, batch=batch, micro_batch=batch, critic_warmup=0)
    compiled = replace(settings, parallel=replace(settings.parallel, compile=not TINY))
    draw = torch.Generator().manual_seed(0)
    clips = (
        ({"latent": torch.randn(*shape, generator=draw)}, {"id": str(i), "label": i % 10, "split": "train"})
        for i in range(2 * batch)
    )
    with TemporaryDirectory() as folder:
        latents = write_shards(Path(folder) / "latents", clips, {"classes": list(model.config.classes)}, 64)
        times = ScheduleSettings(name="flow", shift=1.0, low=0.0, high=1.0, density="uniform")
        save_predictor(Path(folder), model.config, model.state_dict(), times)
        del model
        counted, warm, ranks = 1 if TINY else 4, 2, Ranks(device=DEVICE)
        task = DistillTask(settings, Path(folder), latents, ranks)
        with FlopCounterMode(display=False) as counter:
            for step in range(counted):
                task.train_step(step)
        del task
        forget_peak()
        task = DistillTask(compiled, Path(folder), latents, ranks)
        for step in range(warm):
            task.train_step(step)
        started, step = perf_counter(), warm
        while perf_counter() - started < seconds:
            task.train_step(step)  # which ends with numbers that the CPU reads
            step += 1
        updates = (step - warm) / (perf_counter() - started)
    say(
        case=f"distil {name}, batch {batch}, {settings.critic_updates} critic updates a student's, compiled",
        student_updates_a_second=updates, clips_a_second=updates * batch * (1 + settings.critic_updates),
        mfu=updates * counter.get_total_flops() / counted / DENSE_BF16, peak_gib=peak_gib(), goal="shown",
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
    for dim in (2, 8, 32, 256):
        search(32768, 16384, dim)
    for name in chosen or ("small", "medium", "large"):
        for way in ways(name, presets[name]):
            train(name, way)
        sample(name, presets[name])
        if name in ("small", "medium"):
            distil(name, presets[name])
