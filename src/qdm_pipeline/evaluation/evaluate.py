"""Numbers for every set of samples, beside what real clips and reconstructions reach."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.data import LEAST, Data, EvaluationSettings, labels_of
from qdm_pipeline.evaluation.judge import mean_squared_error, psnr
from qdm_pipeline.evaluation.observe import Observation
from qdm_pipeline.evaluation.readers import latent_reader, reconstruction_reader
from qdm_pipeline.evaluation.real import RealClips, make_observer
from qdm_pipeline.evaluation.rows import compare, memorisation, sampling_facts
from qdm_pipeline.evaluation.sample_set import SampleSet, latent_moments
from qdm_pipeline.evaluation.warnings import warnings
from qdm_pipeline.ranks import Ranks

__all__ = ["Data", "EvaluationSettings", "evaluate", "labels_of"]

logger = logging.getLogger(__name__)

Decoder = Callable[[Tensor], Tensor]  # codes int [B, G, T, H, W] -> latents [B, C, T, H, W]

RESERVED = ("real", "reconstruction", "shuffled", "noise")


def evaluate(
    settings: EvaluationSettings,
    sample_sets: Sequence[Path],
    data: Data,
    decoders: Mapping[str, Decoder],
    ranks: Ranks,
) -> dict[str, Any]:
    """Metrics of all sample sets and of reference sets, against the test split; the same on every rank.

    ``decoders`` gives, by the name of a sample set, its model's map from codes to latents: that set gets a
    second row ``NAME-quantized`` for what its codes alone say. docs/evaluation.md has the schema.

    Row ``real`` holds train clips against test clips, the floor of every distance; its accuracy and latents
    are those of test clips. ``shuffled`` are the same train clips with their frames in random order,
    ``noise`` is noise of their brightness. ``reconstruction`` is the test clips after the autoencoder.
    `InputError`, before anything is computed, if a set does not fit the clips or is too small.
    """
    sets = [SampleSet(path) for path in sample_sets]
    _check(sets, data, decoders)
    autoencoder, classifier = data.autoencoder.to(ranks.device), data.classifier.to(ranks.device)
    data.model.to(ranks.device)
    observer = make_observer(settings, data, ranks)
    real = RealClips(settings, data, observer)
    shape, fps = data.clips.shape("video"), data.clips.manifest["fps"]

    def row(name: str, seen: Observation) -> dict[str, Any]:
        return compare(name, seen, real.reference, settings.neighbours, settings.splits)

    def copies(seen: Observation) -> dict[str, float]:
        return {"nearest_train": memorisation(seen, real.reference, real.bank)}

    rows = []
    for samples in sets:
        asked = samples.labels[: settings.samples]
        for name, latents in _readings(samples, decoders.get(samples.name), settings.batch, ranks).items():
            seen = observer.observe(latent_reader(latents, autoencoder), asked)
            facts = sampling_facts(samples, shape, fps) | latent_moments(latents) | copies(seen)
            rows.append(row(name, seen) | facts)
    of_test = {"accuracy": real.reference.accuracy} | latent_moments(data.latents.gather("latent", real.test))
    rows.append(row("real", real.floor) | of_test)
    rows += [row(name, seen) for name, seen in real.spoilt().items()]
    reconstructions = reconstruction_reader(real.originals, autoencoder)
    error = mean_squared_error(reconstructions, real.originals, len(real.test), settings.batch, ranks)
    seen = observer.observe(reconstructions, real.reference.labels)
    rows.append(row("reconstruction", seen) | {"psnr": psnr(error)} | copies(seen))
    said = warnings(rows, *real.reference.features.shape)
    for line in said if ranks.is_main else ():
        logger.warning(line)
    return {
        "metric": observer.extractor.metric_name(shape, len(real.test)),
        "extractor": observer.extractor.facts(),
        "reference": {"split": "test", "count": len(real.test)},
        "classes": list(classifier.config.classes),
        "fps": fps,
        "rows": rows,
        "corruptions": real.corruptions(),
        "code_dropout": real.code_dropout(),
        "warnings": said,
    }


def _check(sets: Sequence[SampleSet], data: Data, decoders: Mapping[str, Decoder]) -> None:
    names = [samples.name for samples in sets]
    if len(set(names)) < len(names) or set(RESERVED) & set(names):
        raise InputError(f"sample sets are named {names}: names must differ, also from {', '.join(RESERVED)}")
    if unknown := set(decoders) - set(names):
        raise ValueError(f"decoders for {sorted(unknown)}, but the sample sets are {names}")
    shape = data.latents.shape("latent")
    for samples in sets:
        samples.check(shape, data.classifier.config.classes, LEAST)


@torch.inference_mode()
def _readings(samples: SampleSet, decoder: Decoder | None, batch: int, ranks: Ranks) -> dict[str, Tensor]:
    """Latents by row name: as sampled and, with a decoder, as its codes alone say."""
    if decoder is None:
        return {samples.name: samples.latents}
    parts = [decoder(codes.to(ranks.device)).float().cpu() for codes in samples.codes.split(batch)]
    return {samples.name: samples.latents, f"{samples.name}-quantized": torch.cat(parts)}
