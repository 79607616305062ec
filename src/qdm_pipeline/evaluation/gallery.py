"""What the report shows beside the numbers: videos, their codes, nearest train clips, clips to guess."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qdm_pipeline.evaluation.code_clips import clips_of_codes, enlarged
from qdm_pipeline.evaluation.code_dropout import tokens_of
from qdm_pipeline.evaluation.data import Data, EvaluationSettings, labels_of, subset
from qdm_pipeline.evaluation.neighbours import nearest
from qdm_pipeline.evaluation.readers import clip_reader, latent_reader, reconstruction_reader
from qdm_pipeline.evaluation.real import bank, make_observer
from qdm_pipeline.evaluation.sample_set import SampleSet
from qdm_pipeline.models.codebook_use import usage_histogram
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks

MAPPED = 2  # clips whose codes are shown
GUESSED = "student"  # whose samples are to be told from real clips


def gallery(settings: EvaluationSettings, sample_sets: Sequence[Path], data: Data) -> dict[str, Tensor]:
    """Pictures and histograms, ready for one safetensors file; for one rank to compute.

    ``videos/NAME``: uint8 [lines, columns, 3, T, H, W] for "real" (test clips), "reconstruction" (of the
    same clips) and every sample set; ``classes``: int64 [columns], the class of each column, -1 without
    classes. For every sample set and "real" ``usage/NAME``: int64 [G, K], how often each code was used;
    ``codes/NAME``: uint8 [2, 1 + G, 3, T, H, W], two clips, each with its codes as colours. For every sample
    set ``nearest/NAME``: uint8 [2, columns, 3, T, H, W], of the samples shown those that lie closest to a
    train clip, and that clip. ``guess/clips`` and ``guess/made``: see `mixed`, of test clips and of samples
    of the student that are not in ``videos``. ``used/GROUP-CODE``, ``rare/GROUP-CODE``: see `clips_of_codes`.
    """
    count = len(data.classifier.config.classes)
    classes = torch.arange(settings.columns) % count if count else torch.full((settings.columns,), -1)
    wanted = classes.repeat(2 * settings.lines)  # half of them to guess
    test = subset(data.clips, "test", settings)
    originals = clip_reader(data.clips, test)
    reconstructions = reconstruction_reader(originals, data.autoencoder)
    places, unseen = places_by_class(labels_of(data.clips)[test], wanted).chunk(2)
    grid = (settings.lines, settings.columns)
    observer = make_observer(settings, data, Ranks(device=data.autoencoder.mean.device))
    train = bank(settings, data.clips, observer)
    shown = {"classes": classes}
    shown["videos/real"] = originals(places).unflatten(0, grid)
    shown["videos/reconstruction"] = reconstructions(places).unflatten(0, grid)
    codes = tokens_of(data, test, settings.batch)
    shown["usage/real"] = usage_histogram(codes, data.model.quantizer.codebook.shape[1])
    shown["codes/real"] = _maps(originals(places[:MAPPED]), codes[places[:MAPPED]])
    shown |= clips_of_codes(codes, shown["usage/real"], originals)
    for samples in map(SampleSet, sample_sets):
        decoded = latent_reader(samples.latents, data.autoencoder)
        chosen, others = places_by_class(samples.labels, wanted).chunk(2)
        videos = decoded(chosen)
        away, where = nearest(observer.extractor(videos), train)
        closest = away.argsort()[: settings.columns]
        copied = data.clips.gather("video", data.clips.rows("train")[where[closest]])
        shown[f"videos/{samples.name}"] = videos.unflatten(0, grid)
        shown[f"nearest/{samples.name}"] = torch.stack([videos[closest], copied])
        shown[f"codes/{samples.name}"] = _maps(videos[:MAPPED], samples.codes[chosen[:MAPPED]])
        shown[f"usage/{samples.name}"] = samples.usage
        if samples.name == GUESSED:
            shown |= mixed(originals(unseen), decoded(others), settings.seed)
    return shown


def mixed(real: Tensor, made: Tensor, seed: int) -> dict[str, Tensor]:
    """``guess/clips``: both, uint8 [n, 3, T, H, W], shuffled; ``guess/made``: bool [n], made or not."""
    made_of = torch.cat([torch.zeros(len(real)), torch.ones(len(made))]).bool()
    order = torch.randperm(len(made_of), generator=generator(seed, 0, 0, "clips to guess"))
    return {"guess/clips": torch.cat([real, made])[order], "guess/made": made_of[order]}


def _maps(videos: Tensor, codes: Tensor) -> Tensor:
    return torch.stack([code_maps(*pair) for pair in zip(videos, codes, strict=True)])


def code_maps(video: Tensor, codes: Tensor) -> Tensor:
    """``video`` uint8 [3, T, H, W] and, as large, each group of ``codes`` [G, T', H', W'] as colours.

    Returns uint8 [1 + G, 3, T, H, W]. A code has one colour wherever it stands.
    """
    large = enlarged(codes.long(), *video.shape[1:])
    maps = palette(int(codes.max()) + 1)[large].permute(0, 4, 1, 2, 3)
    return torch.cat([video[None], maps])


def palette(size: int) -> Tensor:
    """A colour for each of ``size`` codes, hues by the golden ratio: uint8 [size, 3]."""
    colours = [
        colorsys.hsv_to_rgb(code * 0.618034 % 1, 0.45 + 0.4 * (code % 3) / 2, 0.95 - 0.35 * (code % 5) / 4)
        for code in range(size)
    ]
    return (torch.tensor(colours) * 255).to(torch.uint8)


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
