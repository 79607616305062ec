"""What the report shows beside the numbers: videos of every row, the same class in the same place."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qdm_pipeline.evaluation.data import Data, EvaluationSettings, labels_of, subset
from qdm_pipeline.evaluation.readers import clip_reader, latent_reader, reconstruction_reader
from qdm_pipeline.evaluation.sample_set import SampleSet


def gallery(settings: EvaluationSettings, sample_sets: Sequence[Path], data: Data) -> dict[str, Tensor]:
    """Pictures and histograms, ready for one safetensors file; for one rank to compute.

    ``videos/NAME``: uint8 [lines, columns, 3, T, H, W] for "real" (test clips), "reconstruction" (of the
    same clips) and every sample set; ``classes``: int64 [columns], the class of each column, -1 without
    classes; ``usage/NAME``: int64 [G, K], how often each code was used.
    """
    count = len(data.classifier.config.classes)
    classes = torch.arange(settings.columns) % count if count else torch.full((settings.columns,), -1)
    wanted = classes.repeat(settings.lines)
    test = subset(data.clips, "test", settings)
    originals = clip_reader(data.clips, test)
    reconstructions = reconstruction_reader(originals, data.autoencoder)
    places = places_by_class(labels_of(data.clips)[test], wanted)
    videos = {"real": originals(places), "reconstruction": reconstructions(places)}
    usage = {}
    for samples in map(SampleSet, sample_sets):
        read = latent_reader(samples.latents, data.autoencoder)
        videos[samples.name] = read(places_by_class(samples.labels, wanted))
        usage[samples.name] = samples.usage
    grid = (settings.lines, settings.columns)
    return (
        {"classes": classes}
        | {f"videos/{name}": video.unflatten(0, grid) for name, video in videos.items()}
        | {f"usage/{name}": histogram for name, histogram in usage.items()}
    )


def places_by_class(labels: Tensor, wanted: Tensor) -> Tensor:
    """For each of ``wanted`` [n] the position of the next sample of that label, or of the next left at all.

    Where samples run out, the first are shown again.
    """
    left = list(range(len(labels)))
    places = []
    for label in wanted.tolist():
        left = left or list(range(len(labels)))
        found = next((position for position in left if labels[position] == label), left[0])
        left.remove(found)
        places.append(found)
    return torch.tensor(places)
