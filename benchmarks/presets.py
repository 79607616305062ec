"""What each preset costs, computed from its parameters: prints the table of the README."""

from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project

from qdm_pipeline.configuration import plain
from qdm_pipeline.files import write_json
from qdm_pipeline.models.cost import build_on_meta, cost
from qdm_pipeline.models.predictor import PredictorConfig
from qdm_pipeline.parameters import hints, typed_parameters
from qdm_pipeline.settings import CONFIG_LOADER_ARGS
from qdm_pipeline.training.optimizer import Optimizer, OptimizerSettings

ROOT = Path(__file__).parent.parent
SIZES = Path(__file__).with_name("presets.json")  # written here, read by benchmarks/gpu.py
PRESETS = ("base", "small", "medium", "large", "dmd_optimized")
HEADER = (
    "preset", "codes", "width", "layers", "clip", "latents", "tokens", "parameters", "TFLOP a pass",
    "teacher's state", "distillation's state",
)  # fmt: skip


def parameters(preset: str) -> dict[str, Any]:
    """The validated parameters of an environment."""
    bootstrap_project(ROOT)
    loader = OmegaConfigLoader(str(ROOT / "conf"), env=preset, **CONFIG_LOADER_ARGS)
    return typed_parameters(loader["parameters"], hints(pipelines), lambda key: f"conf/{preset}")


def shapes(preset: dict[str, Any]) -> tuple[PredictorConfig, tuple[int, int, int, int]]:
    """The predictor of a preset with ten classes, and its latents [C, T, H, W]."""
    clips, autoencoder = preset["clips"], preset["autoencoder"].model
    side, frames = clips.size // autoencoder.space_patch, (clips.frames - 1) // autoencoder.time_patch + 1
    size, channels = preset["teacher"].model, autoencoder.latent_channels
    classes = tuple(map(str, range(10)))
    config = PredictorConfig(
        size=size, latent_channels=channels, classes=classes, vocabulary=(), caption_length=0
    )
    return config, (channels, frames, side, side)


def state_bytes(config: PredictorConfig, optimizer: OptimizerSettings, ema: bool) -> int:
    """Weights, gradients, moments of the optimizer and average of one network, float32; no activations."""
    made = Optimizer("model", build_on_meta(config), optimizer, 1)
    moments = {"AdamW": 2, "Muon": 1}
    return 4 * sum(
        p.numel() * (2 + moments[type(each).__name__] + ema)
        for each in made.optimizers
        for group in each.param_groups
        for p in group["params"]
    )


def row(name: str) -> tuple[str, ...]:
    """The row of one preset."""
    preset = parameters(name)
    config, latents = shapes(preset)
    teacher, distill, size, clips = preset["teacher"], preset["distill"], config.size, preset["clips"]
    spent = cost(config, latents)
    training = state_bytes(config, teacher.optimizer, True)
    student = state_bytes(config, distill.student_optimizer, True)
    critic = state_bytes(config, distill.critic_optimizer, False)
    codes = f"{size.quantizer.groups} × {size.quantizer.codebook_size}"
    return (
        f"`{name}`", codes, str(size.width), str(size.depth), f"{clips.frames}×{clips.size}×{clips.size}",
        "×".join(map(str, latents)), str(spent.tokens), f"{spent.parameters / 1e6:.1f} M",
        f"{spent.flops / 1e12:.4f}", f"{training / 2**30:.2f} GiB",
        f"{(student + critic + 4 * spent.parameters) / 2**30:.2f} GiB",
    )  # fmt: skip


def table() -> str:
    """The table of all presets in Markdown."""
    rows = [HEADER, ("---",) * len(HEADER), *map(row, PRESETS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def sizes() -> dict[str, Any]:
    """What a machine without Kedro needs of the presets: predictor and latents, JSON-like."""
    return {name: _size(parameters(name)) for name in PRESETS}


def _size(preset: dict[str, Any]) -> dict[str, Any]:
    config, latents = shapes(preset)
    return {
        "predictor": plain(config),
        "latents": list(latents),
        "batch": preset["teacher"].micro_batch,
        "recompute": preset["teacher"].recompute,
    }


if __name__ == "__main__":
    write_json(SIZES, sizes())
    print(table())
