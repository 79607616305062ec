"""Clips to latents: every clip once through the autoencoder's encoder, into shards."""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.video.autoencoder import CausalVideoAutoencoder, to_float
from qdm_pipeline.video.shards import Sample, ShardSet, write_shards

COLUMNS = ("id", "file", "start", "split", "label", "caption")


@settings
class EncodeSettings:
    """Clips a batch, and latents a shard."""

    batch: int
    shard_size: int

    def __post_init__(self) -> None:
        require(min(self.batch, self.shard_size) >= 1, "encode: batch and shard_size must be at least 1")


def encode_latents(
    settings: EncodeSettings, clips: ShardSet, autoencoder: CausalVideoAutoencoder, ranks: Ranks, run: Run
) -> Handle | None:
    """Write the normalised latents of all ``clips`` into the run's directory. Only the main rank does.

    `InputError` if the clips do not fit the autoencoder or a latent is not finite.
    """
    if not ranks.is_main:
        return None
    _, frames, height, width = clips.manifest["fields"]["video"]["shape"]
    shape = autoencoder.latent_shape(frames, height, width)
    autoencoder = autoencoder.to(ranks.device).eval()
    manifest = {
        "kind": "latents",
        "shape": list(shape),
        "mean": autoencoder.mean.tolist(),
        "std": autoencoder.std.tolist(),
        "autoencoder": run.inputs["autoencoder"].digest,
        "classes": clips.manifest["classes"],
        "fps": clips.manifest["fps"],
    }
    samples = _samples(clips, autoencoder, settings.batch, ranks.device)
    shards = write_shards(run.directory, samples, manifest, settings.shard_size)
    return run.finish(shards.digest, {"count": len(shards), "shape": list(shape)})


def _samples(
    clips: ShardSet, autoencoder: CausalVideoAutoencoder, batch: int, device: torch.device
) -> Iterator[Sample]:
    columns = {name: clips.column(name) for name in COLUMNS}
    for rows in tqdm(torch.arange(len(clips)).split(batch), desc="latents", unit="batch"):
        with torch.no_grad():
            latents = autoencoder.encode(to_float(clips.gather("video", rows).to(device))).float().cpu()
        for row, latent in zip(rows.tolist(), latents, strict=True):
            sample = {name: values[row] for name, values in columns.items()}
            if not latent.isfinite().all():
                raise InputError(f"clip {sample['id']} of {sample['file']}: its latents are not finite")
            yield {"latent": latent}, sample
