"""Models to samples."""

from pathlib import Path

from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.launch.world import WorldSize
from qdm_pipeline.run import Run
from qdm_pipeline.training.sampling import SamplingSettings


def sample_model(
    settings: SamplingSettings,
    model: Handle,
    autoencoder: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> tuple[Handle, bytes]:
    """Sample a model; returns the samples and their animated grid."""
    run = Run.create("samples", settings, {"model": model, "autoencoder": autoencoder}, runs)
    samples = run_job(run, world_size, launch)
    return samples, (samples.path / "grid.webp").read_bytes()
