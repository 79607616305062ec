"""Few-step quantized video generation: VQ latent diffusion distilled by distribution matching."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdm_pipeline.inference.pipeline import QuantizedVideoPipeline

__all__ = ["QuantizedVideoPipeline"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the pipeline, and torch with it, only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qdm_pipeline.inference import pipeline

    return getattr(pipeline, name)
