"""Videos to clips, clips to an autoencoder and a classifier, and to latents."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qdm_pipeline.evaluation.classifier_task import ClassifierSettings
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.launch.world import WorldSize, decoders
from qdm_pipeline.run import Run
from qdm_pipeline.video.autoencoder import load_autoencoder, to_float, to_uint8
from qdm_pipeline.video.autoencoder_task import AutoencoderSettings
from qdm_pipeline.video.clips import ClipSettings, make_clips
from qdm_pipeline.video.diffusers_autoencoder import diffusers_handle
from qdm_pipeline.video.encode import EncodeSettings
from qdm_pipeline.video.folder import videos_handle
from qdm_pipeline.video.media import write_grid
from qdm_pipeline.video.shards import ShardSet
from qdm_pipeline.video.text_encoder import text_encoder_handle

SHOWN = 8  # clips in the preview


def cut_clips(
    settings: ClipSettings, folder: Path, runs: Path, world_size: WorldSize
) -> tuple[Handle, list[dict[str, Any]]]:
    """Decode the videos of ``folder`` into clips; also the skipped ones."""
    run = Run.create("clips", settings, {"videos": videos_handle(folder)}, runs)
    clips = run.result() or make_clips(settings, folder, run, decoders=decoders(world_size))
    return clips, ShardSet(clips.path).manifest["skipped"]


def train_autoencoder(
    settings: AutoencoderSettings,
    clips: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
    pretrained: str | None,
) -> Handle:
    """Train the video autoencoder on the train split, or take the one in the directory ``pretrained``."""
    if pretrained is not None:
        return diffusers_handle(Path(pretrained))
    return run_job(Run.create("autoencoder", settings, {"clips": clips}, runs), world_size, launch)


def encode_clips(
    settings: EncodeSettings,
    clips: Handle,
    autoencoder: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> Handle:
    """Encode every clip once, into shards of latents, and, if the settings want it, its caption."""
    inputs = {"clips": clips, "autoencoder": autoencoder}
    if settings.text is not None:
        inputs["text_encoder"] = text_encoder_handle(settings.text.encoder)
    return run_job(Run.create("latents", settings, inputs, runs), world_size, launch)


def train_classifier(
    settings: ClassifierSettings, clips: Handle, runs: Path, world_size: WorldSize, launch: LaunchSettings
) -> Handle:
    """Train the classifier whose features the distances are measured in."""
    return run_job(Run.create("classifier", settings, {"clips": clips}, runs), world_size, launch)


def show_reconstructions(clips: Handle, autoencoder: Handle) -> bytes:
    """An animation of test clips (above) and what the autoencoder makes of them (below)."""
    shards = ShardSet(clips.path).of_main_size()
    video = shards.gather("video", shards.rows("test")[:SHOWN])
    model = load_autoencoder(autoencoder.path)
    with torch.inference_mode():
        decoded = to_uint8(model.decode(model.encode(to_float(video))))
    with TemporaryDirectory() as folder:
        fps = round(shards.manifest["fps"])
        write_grid(Path(folder), "grid", torch.cat([video, decoded]), len(video), fps, scale=2)
        return (Path(folder) / "grid.webp").read_bytes()
