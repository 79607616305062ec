"""Write ``presets.json``: the presets' predictors and latents, for machines without Kedro."""

from pathlib import Path
from typing import Any

from qdm_pipeline.configuration import plain
from qdm_pipeline.estimate import shapes
from qdm_pipeline.files import write_json
from qdm_pipeline.presets import PRESETS, parameters

ROOT = Path(__file__).parent.parent
SIZES = Path(__file__).with_name("presets.json")  # read by benchmarks/gpu.py


def sizes() -> dict[str, Any]:
    """What a GPU benchmark needs of the presets, JSON-like."""
    return {name: _size(parameters(ROOT, name)) for name in PRESETS}


def _size(preset: dict[str, Any]) -> dict[str, Any]:
    config, latents = shapes(preset)
    return {
        "predictor": plain(config),
        "latents": list(latents),
        "batch": preset["teacher"].micro_batch,
        "recompute": preset["teacher"].recompute,
        "distill": plain(preset["distill"]),
    }


if __name__ == "__main__":
    write_json(SIZES, sizes())
