"""Clips to latents: every clip once through the autoencoder's encoder, into shards."""

import logging
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.configuration import plain, require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.video.autoencoder import to_float
from qdm_pipeline.video.latents import VideoAutoencoder
from qdm_pipeline.video.shards import Sample, ShardSet, ShardWriter
from qdm_pipeline.video.text_encoder import TextEncoder, TextSettings

logger = logging.getLogger(__name__)

COLUMNS = ("id", "file", "start", "end", "split", "label", "caption")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@settings
class EncodeSettings:
    """Clips a batch, latents a shard, the ``dtype`` they are kept in; ``tile``: see `encode_tiled`."""

    batch: int
    shard_size: int
    tile: int | None
    dtype: Literal["fp32", "fp16", "bf16"]
    text: TextSettings | None  # of captions' token states, kept beside the latents

    def __post_init__(self) -> None:
        require(min(self.batch, self.shard_size) >= 1, "encode: batch and shard_size must be at least 1")
        require(self.dtype in DTYPES, f"encode: dtype: found {self.dtype}, allowed are {', '.join(DTYPES)}")
        require(self.tile is None or self.tile >= 8, f"encode: tile: found {self.tile}, must be at least 8")


def encode_latents(
    settings: EncodeSettings, clips: ShardSet, autoencoder: VideoAutoencoder, ranks: Ranks, run: Run
) -> Handle | None:
    """Write the normalised latents of all ``clips`` into the run's directory; the handle on the main rank.

    With ``text`` also the token states of their captions, by the text encoder among the run's inputs.
    Ranks take shards in turn, and a shard's bytes depend on nothing but its number: any number of ranks, and
    a run that was killed and started again, make the same files. `InputError` if the clips do not fit the
    autoencoder, a latent is not finite or too large for ``dtype``, or finished shards have another encoder.
    """
    shapes = [list(autoencoder.latent_shape(*shape[1:])) for shape in clips.shapes("video")]
    autoencoder = autoencoder.to(ranks.device).eval()
    identity = {
        "kind": "latents",
        "shapes": shapes,
        "space": autoencoder.space,
        "dtype": settings.dtype,
        "tile": settings.tile,
        "mean": autoencoder.mean.tolist(),
        "std": autoencoder.std.tolist(),
        "autoencoder": run.inputs["autoencoder"].digest,
        "fps": clips.manifest["fps"],
    }
    texts = None
    if settings.text is not None:
        texts = _text_encoder(settings.text, clips, run, ranks)
        identity["text"] = plain(texts.config)
    writer = ShardWriter(run.directory, identity)
    parts = clips.parts(torch.arange(len(clips)), settings.shard_size)
    if (shards := writer.finished()) is None:
        mine = [n for n in range(ranks.rank, len(parts), ranks.world) if writer.note(n) is None]
        for number in tqdm(mine, desc="latents", unit="shard", disable=not ranks.is_main):
            samples = _samples(settings, clips, parts[number], autoencoder, texts, ranks.device)
            writer.put(number, list(samples))
        ranks.barrier()
        if not ranks.is_main:
            return None
        facts = identity | {"classes": clips.manifest["classes"]}
        if texts is not None:
            facts["empty_text"] = texts.empty().tolist()
        shards = writer.finish(len(parts), facts, sizes=True)
    if not ranks.is_main:
        return None
    return run.finish(shards.digest, {"count": len(shards), "shapes": shapes})


def _samples(
    settings: EncodeSettings,
    clips: ShardSet,
    rows: Tensor,
    autoencoder: VideoAutoencoder,
    texts: TextEncoder | None,
    device: torch.device,
) -> Iterator[Sample]:
    columns = {name: clips.column(name) for name in COLUMNS}
    for part in rows.split(settings.batch):
        video = to_float(clips.gather("video", part).to(device))
        with torch.no_grad():
            latents = autoencoder.encode_tiled(video, settings.tile)
        fields = {"latent": latents.to(DTYPES[settings.dtype]).cpu()}
        if texts is not None:
            states, tokens = texts([columns["caption"][row] for row in part.tolist()])
            fields |= {"text": states.to(DTYPES[settings.dtype]), "text_tokens": tokens}
        for place, row in enumerate(part.tolist()):
            sample = {name: values[row] for name, values in columns.items()}
            tensors = {name: field[place] for name, field in fields.items()}
            if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
                raise InputError(
                    f"clip {sample['id']} of {sample['file']}: its {bad[0]} is not finite in {settings.dtype}"
                )
            yield tensors, sample


def _text_encoder(settings: TextSettings, clips: ShardSet, run: Run, ranks: Ranks) -> TextEncoder:
    """The text encoder; `InputError` if a caption is too long for it, or there is none at all."""
    captions = clips.column("caption")
    if (missing := captions.count(None)) == len(captions):
        raise InputError(f"encode: text: found {settings.encoder!r}, but no clip has a caption")
    if missing and ranks.is_main:
        logger.info("%d of %d clips have no caption: they are encoded as asking for nothing",
                    missing, len(captions))  # fmt: skip
    encoder = TextEncoder(run.inputs["text_encoder"], settings.length, ranks.device)
    encoder.require_fit(sorted({caption for caption in captions if caption is not None}))
    return encoder
