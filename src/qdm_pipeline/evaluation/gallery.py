"""What the report shows beside the numbers: videos of every row, the same class in the same place."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qdm_pipeline.evaluation.evaluate import Data, EvaluationSettings, labels_of, subset
from qdm_pipeline.evaluation.readers import clip_reader, latent_reader, reconstruction_reader
from qdm_pipeline.evaluation.sample_set import SampleSet


def gallery(settings: EvaluationSettings, sample_sets: Sequence[Path], data: Data) -> dict[str, Tensor]:
    """Pictures and histograms, ready for one safetensors file; computed on one rank.

    ``videos/NAME`` uint8 [columns * lines, 3, T, H, W] for "real" (test clips), "reconstruction" (of the
    same clips) and every sample set, row by row; ``classes`` int64 [columns * lines], -1 without classes;
    ``usage/NAME`` int64 [G, K], how often each code was used.
    """
    test = subset(data.clips, "test", settings)
    classes = torch.arange(settings.columns).repeat(settings.lines)
    count = len(data.classifier.config.classes)
    classes = classes % count if count else torch.full_like(classes, -1)
    originals = clip_reader(data.clips, test)
    places = places_by_class(labels_of(data.clips)[test], classes)
    tensors = {
        "classes": classes,
        "videos/real": originals(places),
        "videos/reconstruction": reconstruction_reader(originals, data.autoencoder)(places),
    }
    for path in sample_sets:
        samples = SampleSet(path)
        read = latent_reader(samples.latents, data.autoencoder)
        tensors[f"videos/{samples.name}"] = read(places_by_class(samples.labels, classes))
        tensors[f"usage/{samples.name}"] = samples.usage
    return tensors


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
