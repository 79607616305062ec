"""What an evaluation is told and what it is given."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor
from qdm_pipeline.randomness import generator
from qdm_pipeline.video.latents import VideoAutoencoder
from qdm_pipeline.video.shards import ShardSet

LEAST = 3  # a covariance needs 2 samples, also while the jack-knife leaves one out


@settings
class EvaluationSettings:
    """What is measured with, on how many samples, and the grid of pictures.

    samples: a row at most; blocks: of the jack-knife; extractor: see `extractors`; weights: folder of the
    files of extractors; cache: folder of what was seen in real clips; neighbours: k of precision, recall,
    density and coverage; splits: of the class score; corrupted: clips that each corruption, and each damage
    to their codes, is tried on; train_clips: at most, that copies are looked for in.
    """

    samples: int
    batch: int
    blocks: int
    extractor: str
    weights: str
    cache: str
    neighbours: int
    splits: int
    corrupted: int
    train_clips: int
    columns: int
    lines: int
    seed: int

    def __post_init__(self) -> None:
        least = {"samples": LEAST, "batch": 1, "blocks": 10, "columns": 1, "lines": 1}
        least |= {"neighbours": 1, "splits": 1, "corrupted": 0, "train_clips": 1}
        for name, bound in least.items():
            found = getattr(self, name)
            require(found >= bound, f"evaluation {name}: found {found}, must be at least {bound}")
        require(self.corrupted != 1, "evaluation corrupted: found 1, must be 0 or at least 2")


@dataclass(frozen=True)
class Data:
    """What samples are held against: the clips, their latents, and the networks between and behind them.

    Clips and latents are of one size, that of the samples. ``model`` is the teacher, for its codebook.
    """

    clips: ShardSet
    latents: ShardSet
    autoencoder: VideoAutoencoder
    classifier: VideoClassifier
    model: QuantizedDiffusionPredictor


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
