"""Numbers for every set of samples, beside what real clips and reconstructions reach."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.evaluation.frechet import frechet_with_interval
from qdm_pipeline.evaluation.judge import Judge, Tally, mean_squared_error
from qdm_pipeline.evaluation.readers import clip_reader, latent_reader, reconstruction_reader
from qdm_pipeline.evaluation.sample_set import SampleSet, latent_moments
from qdm_pipeline.models.codebook_use import codebook_use
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.autoencoder import CausalVideoAutoencoder
from qdm_pipeline.video.shards import ShardSet

logger = logging.getLogger(__name__)

Decoder = Callable[[Tensor], Tensor]  # codes int [B, G, T, H, W] -> latents [B, C, T, H, W]

# Every row has all of these; None where a value has no meaning.
COLUMNS = (
    "name", "nfe", "steps", "guidance", "frechet", "frechet_low", "frechet_high", "accuracy",
    "utilization", "utilization_tokens", "utilization_ceiling", "perplexity", "codebook_size",
    "latent_mean", "latent_std", "psnr", "seconds_per_clip", "count",
)  # fmt: skip
LEAST = 3  # a covariance needs 2 samples, also while the jack-knife leaves one out


@settings
class EvaluationSettings:
    """Samples a row at most, samples a batch, blocks of the jack-knife, and the grid of pictures."""

    samples: int
    batch: int
    blocks: int
    columns: int
    lines: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in {"samples": LEAST, "batch": 1, "blocks": 10, "columns": 1, "lines": 1}.items():
            found = getattr(self, name)
            require(found >= least, f"evaluation {name}: found {found}, must be at least {least}")


@dataclass(frozen=True)
class Data:
    """What samples are held against: the clips, their latents, and the networks between and behind them."""

    clips: ShardSet
    latents: ShardSet
    autoencoder: CausalVideoAutoencoder
    classifier: VideoClassifier


def evaluate(
    settings: EvaluationSettings,
    sample_sets: Sequence[Path],
    data: Data,
    decoders: Mapping[str, Decoder],
    ranks: Ranks,
) -> dict[str, Any]:
    """Metrics of all sample sets, of real clips and of reconstructions, against the test split.

    ``decoders`` gives, by the name of a sample set, its model's map from codes to latents: that set gets a
    second row ``NAME-quantized`` for what its codes alone say. Returns, on every rank,
    ``{"metric": full name of the distance, "reference": {"split", "count"}, "rows": [COLUMNS, ...]}`` and
    the classes and the frame rate of the clips.

    Row ``real`` holds train clips against test clips, the floor of the distance; its accuracy and latents
    are those of test clips. Row ``reconstruction`` is the test clips after the autoencoder.
    `InputError`, before anything is computed, if a set does not fit the clips or is too small.
    """
    sets = [SampleSet(path) for path in sample_sets]
    _check(sets, data, decoders)
    autoencoder, classifier = data.autoencoder.to(ranks.device), data.classifier.to(ranks.device)
    judge = Judge(classifier, settings.batch, settings.blocks, settings.seed, ranks)
    train, test = subset(data.clips, "train", settings), subset(data.clips, "test", settings)
    if len(test) <= classifier.config.features:
        logger.warning(
            "%d test clips for %d features: distances are far above their limit", len(test),
            classifier.config.features,
        )  # fmt: skip
    labels = labels_of(data.clips)
    originals = clip_reader(data.clips, test)
    reference = judge.tally(originals, labels[test])
    rows = []
    for samples in sets:
        asked = samples.labels[: settings.samples]
        for name, latents in _readings(samples, decoders.get(samples.name), settings.batch, ranks).items():
            tally = judge.tally(latent_reader(latents, autoencoder), asked)
            rows.append(_row(name, tally, reference) | _facts(samples) | latent_moments(latents))
    real = _row("real", judge.tally(clip_reader(data.clips, train), labels[train]), reference)
    rows.append(real | {"accuracy": reference.accuracy} | latent_moments(data.latents.gather("latent", test)))
    reconstructions = reconstruction_reader(originals, autoencoder)
    error = mean_squared_error(reconstructions, originals, len(test), settings.batch, ranks)
    row = _row("reconstruction", judge.tally(reconstructions, labels[test]), reference)
    rows.append(row | {"psnr": -10 * math.log10(max(error, 1e-12))})
    return {
        "metric": _metric_name(classifier, data.clips, len(test)),
        "reference": {"split": "test", "count": len(test)},
        "classes": list(classifier.config.classes),
        "fps": data.clips.manifest["fps"],
        "rows": rows,
    }


def subset(clips: ShardSet, split: str, settings: EvaluationSettings) -> Tensor:
    """At most ``settings.samples`` random rows of ``split``, always the same: int64 [n]."""
    rows = clips.rows(split)
    if len(rows) < LEAST:
        raise InputError(
            f"{clips.directory}: split {split!r} has {len(rows)} clips, a Fréchet distance needs {LEAST}"
        )
    order = torch.randperm(len(rows), generator=generator(settings.seed, 0, 0, f"evaluation {split}"))
    return rows[order[: settings.samples]]


def labels_of(clips: ShardSet) -> Tensor:
    """The label of every clip, -1 for none: int64 [N]."""
    return torch.tensor([-1 if label is None else label for label in clips.column("label")])


def _check(sets: Sequence[SampleSet], data: Data, decoders: Mapping[str, Decoder]) -> None:
    names = [samples.name for samples in sets]
    if len(set(names)) < len(names) or {"real", "reconstruction"} & set(names):
        raise InputError(f"sample sets are named {names}: names must differ, also from real, reconstruction")
    if unknown := set(decoders) - set(names):
        raise ValueError(f"decoders for {sorted(unknown)}, but the sample sets are {names}")
    shape = tuple(data.latents.manifest["fields"]["latent"]["shape"])
    for samples in sets:
        samples.check(shape, data.classifier.config.classes, LEAST)


@torch.inference_mode()
def _readings(samples: SampleSet, decoder: Decoder | None, batch: int, ranks: Ranks) -> dict[str, Tensor]:
    """Latents by row name: as sampled and, with a decoder, as its codes alone say."""
    if decoder is None:
        return {samples.name: samples.latents}
    parts = [decoder(codes.to(ranks.device)).float().cpu() for codes in samples.codes.split(batch)]
    return {samples.name: samples.latents, f"{samples.name}-quantized": torch.cat(parts)}


def _row(name: str, tally: Tally, reference: Tally) -> dict[str, Any]:
    distance = frechet_with_interval(tally.blocks, reference.blocks)
    return dict.fromkeys(COLUMNS) | {
        "name": name,
        "frechet": distance.value,
        "frechet_low": distance.low,
        "frechet_high": distance.high,
        "accuracy": tally.accuracy,
        "count": tally.count,
    }


def _facts(samples: SampleSet) -> dict[str, Any]:
    """What does not depend on how the samples are read."""
    use = codebook_use(samples.usage)
    return {key: samples.metadata[key] for key in ("nfe", "steps", "guidance", "seconds_per_clip")} | {
        "utilization": use.utilization,
        "utilization_tokens": use.tokens,
        "utilization_ceiling": use.ceiling,
        "perplexity": use.perplexity,
        "codebook_size": use.size,
    }


def _metric_name(classifier: VideoClassifier, clips: ShardSet, count: int) -> str:
    """Everything that another number must share to be comparable: features, frames, size, clips."""
    _, frames, height, width = clips.manifest["fields"]["video"]["shape"]
    size = str(height) if height == width else f"{height}x{width}"
    return f"frechet[{classifier.name},{frames}f,{size},{count}]"
