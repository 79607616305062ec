"""What each environment of ``conf`` costs, computed from its parameters."""

from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project

from qdm_pipeline.estimate import shapes, states
from qdm_pipeline.models.cost import cost
from qdm_pipeline.parameters import hints, typed_parameters
from qdm_pipeline.settings import CONFIG_LOADER_ARGS

PRESETS = ("base", "long", "small", "medium", "large", "dmd_optimized")
HEADER = (
    "preset", "codes", "width", "layers", "clip", "latents", "tokens", "parameters", "TFLOP a pass",
    "teacher's state", "distillation's state",
)  # fmt: skip


def parameters(project: Path, preset: str) -> dict[str, Any]:
    """The validated parameters of an environment."""
    bootstrap_project(project)
    loader = OmegaConfigLoader(str(project / "conf"), env=preset, **CONFIG_LOADER_ARGS)
    return typed_parameters(loader["parameters"], hints(pipelines), lambda key: f"conf/{preset}")


def row(project: Path, name: str) -> tuple[str, ...]:
    """The row of one preset."""
    preset = parameters(project, name)
    config, latents = shapes(preset)
    size, clips, spent, state = config.size, preset["clips"], cost(config, latents), states(preset)
    clip = (clips.frames, *clips.largest)
    return (
        f"`{name}`", f"{size.quantizer.groups} × {size.quantizer.codebook_size}", str(size.width),
        str(size.depth), "×".join(map(str, clip)), "×".join(map(str, latents)),
        str(spent.tokens), f"{spent.parameters / 1e6:.1f} M", f"{spent.flops / 1e12:.4f}",
        f"{state['teacher'] / 2**30:.2f} GiB", f"{state['distillation'] / 2**30:.2f} GiB",
    )  # fmt: skip


def table(project: Path) -> str:
    """The table of all presets in Markdown."""
    rows = [HEADER, ("---",) * len(HEADER), *(row(project, name) for name in PRESETS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
