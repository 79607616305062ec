"""Models to samples, and to directories that are used elsewhere."""

from pathlib import Path

from qdm_pipeline.files import digest_file, digest_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.inference.pipeline import write_pipeline
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.launch.world import WorldSize
from qdm_pipeline.run import Run
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.sampling import SamplingSettings
from qdm_pipeline.video.autoencoder import load_autoencoder


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


def export_model(settings: SamplingSettings, model: Handle, autoencoder: Handle, runs: Path) -> Handle:
    """Put a model, its autoencoder and how it is sampled into one directory: a `QuantizedVideoPipeline`."""
    run = Run.create("export", settings, {"model": model, "autoencoder": autoencoder}, runs)
    if (done := run.result()) is not None:
        return done
    predictor, config = load_predictor(model.path)
    decoder = load_autoencoder(autoencoder.path)
    write_pipeline(run.directory, predictor, config, decoder, settings, settings.fps)
    files = sorted(file for part in ("predictor", "autoencoder") for file in (run.directory / part).iterdir())
    return run.finish(digest_json([digest_file(file) for file in files]), {"model": settings.name})
