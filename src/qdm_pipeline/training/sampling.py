"""Sampling a finished model on all ranks: latents, token ids, videos to look at."""

import logging
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.configuration import build, require, settings
from qdm_pipeline.files import digest_file
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.generate import Generation, GenerationSettings, prepare
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.peak_memory import peak_memory
from qdm_pipeline.video.autoencoder import load_autoencoder, to_videos
from qdm_pipeline.video.latents import VideoAutoencoder
from qdm_pipeline.video.media import write_grid, write_mp4

logger = logging.getLogger(__name__)


@settings
class SamplingSettings(GenerationSettings):
    """What to sample, how, and what is shown of it."""

    videos: int  # how many are written as MP4 and shown in the grid
    columns: int
    scale: int
    fps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("columns", "scale", "fps"):
            require(getattr(self, name) >= 1, f"{name}: found {getattr(self, name)}, must be at least 1")
        require(
            0 < self.videos <= self.count,
            f"videos: found {self.videos}, must be from 1 to count ({self.count})",
        )


def sample(run: Run, ranks: Ranks) -> None:
    """Sample the model among the run's inputs; ranks share the batches, and draw what one would."""
    settings = build(SamplingSettings, run.settings)
    model, config = load_predictor(run.inputs["model"].path)
    model = model.to(ranks.device)
    parameters = sum(p.numel() for p in model.parameters())
    prepare(model, settings)
    autoencoder = load_autoencoder(run.inputs["autoencoder"].path).to(ranks.device)
    generation = Generation(settings, model, config)
    count = len(generation.batches)
    mine = range(ranks.rank, count, ranks.world)
    first = partial(generation.solve, 0, generation.times[:1], ())
    memory = peak_memory(first, ranks.device) if ranks.is_main else 0
    started = time.perf_counter()
    bar = tqdm(mine, settings.name, unit="batch", disable=not ranks.is_main, dynamic_ncols=True)
    parts = {number: generation.batch(number) for number in bar}
    seconds = time.perf_counter() - started
    gathered = {number: part for share in ranks.gather(parts) for number, part in share.items()}
    total = float(ranks.sum(torch.tensor(seconds, dtype=torch.float64, device=ranks.device)))
    if ranks.is_main:
        tensors = {
            name: torch.cat([gathered[number][name] for number in range(count)]) for name in gathered[0]
        }
        _write(run.directory, settings, tensors | generation.wanted, autoencoder)
        metadata = {
            "name": settings.name, "path": generation.path, "guidance": settings.guidance,
            "steps": len(generation.times), "nfe": generation.calls, "count": settings.count,
            "shape": list(generation.shape), "seconds_per_clip": total / settings.count,
            "mebibytes_per_clip": memory / 2**20 / len(generation.batches[0]),
            "codebook_size": model.config.size.quantizer.codebook_size, "classes": list(model.config.classes),
            "parameters": parameters,
        }  # fmt: skip
        run.finish(digest_file(run.directory / "samples.safetensors"), metadata)
    ranks.barrier()


def _write(
    directory: Path, settings: SamplingSettings, tensors: dict[str, Tensor], autoencoder: VideoAutoencoder
) -> None:
    save_file(tensors, directory / "samples.safetensors")
    videos = to_videos(autoencoder, tensors["latents"][: settings.videos])
    if find_spec("av") is None:
        logger.warning(
            "%s: no MP4 files are written without PyAV (pip install av), only grid.*", settings.name
        )
    else:
        (directory / "videos").mkdir(exist_ok=True)
        for index, video in enumerate(videos):
            write_mp4(directory / "videos" / f"{index:05d}.mp4", video, settings.fps)
    write_grid(directory, "grid", videos, settings.columns, settings.fps, settings.scale)
