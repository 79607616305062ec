"""The classifier at work on videos, batch by batch, on all ranks."""

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.evaluation.frechet import Moments
from qdm_pipeline.evaluation.intervals import random_blocks
from qdm_pipeline.evaluation.readers import Reader
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.autoencoder import to_float


@dataclass(frozen=True)
class Tally:
    """What is summed over videos: moments of their features by block, questions asked, right answers.

    ``same`` counts those whose first and last frame, each held still, show the classifier one class.
    """

    blocks: tuple[Moments, ...]
    asked: int = 0
    right: int = 0
    same: int = 0

    def merge(self, other: "Tally") -> "Tally":
        """The tally of both."""
        blocks = tuple(a.merge(b) for a, b in zip(self.blocks, other.blocks, strict=True))
        return Tally(blocks, self.asked + other.asked, self.right + other.right, self.same + other.same)

    @property
    def count(self) -> int:
        """How many videos."""
        return sum(block.count for block in self.blocks)

    @property
    def accuracy(self) -> float | None:
        """Share of the questions that were answered right; None if nothing was asked."""
        return self.right / self.asked if self.asked else None

    @property
    def identity(self) -> float | None:
        """Share of videos that begin and end as the same thing; None if nothing was asked."""
        return self.same / self.count if self.asked else None


class Judge:
    """Reads sets of videos and keeps sums only."""

    def __init__(self, classifier: VideoClassifier, batch: int, blocks: int, seed: int, ranks: Ranks) -> None:
        self.classifier, self.batch, self.blocks, self.seed = classifier, batch, blocks, seed
        self.ranks = ranks

    def tally(self, videos: Reader, labels: Tensor) -> Tally:
        """Judge the videos at positions 0 to N - 1, asked to show ``labels`` [N] (-1: anything); all ranks.

        Batches, not single videos, are dealt out to ranks, so the result does not depend on their number.
        """
        draw = generator(self.seed, 0, 0, "jack-knife blocks")
        block_of = random_blocks(len(labels), self.blocks, draw)
        batches = torch.arange(len(labels)).split(self.batch)
        empty = Moments.empty(self.classifier.config.features)
        total = Tally((empty,) * self.blocks)
        for positions in batches[self.ranks.rank :: self.ranks.world]:
            part = self._batch(videos(positions), labels[positions], block_of[positions])
            total = total.merge(part)
        return reduce(Tally.merge, self.ranks.gather(total))

    @torch.inference_mode()
    def _batch(self, video: Tensor, labels: Tensor, block_of: Tensor) -> Tally:
        features, logits = self._see(video)
        empty = Moments.empty(features.shape[1])
        blocks = tuple(empty.add(features[block_of == block]) for block in range(self.blocks))
        if not self.classifier.config.classes:
            return Tally(blocks)
        first, last = (self._see(video[:, :, [at]].expand_as(video))[1].argmax(1) for at in (0, -1))
        right, same = (int(agreed.sum()) for agreed in (logits.argmax(1) == labels, first == last))
        return Tally(blocks, int((labels >= 0).sum()), right, same)

    def _see(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Features and class logits, on the CPU."""
        features, logits = self.classifier(to_float(video.to(self.ranks.device)))
        return features.cpu(), logits.cpu()


def mean_squared_error(videos: Reader, originals: Reader, count: int, batch: int, ranks: Ranks) -> float:
    """Mean over all pixels of both sets' positions 0 to ``count`` - 1, intensities in [0, 1]; all ranks."""
    error, pixels = 0.0, 0
    for positions in torch.arange(count).split(batch)[ranks.rank :: ranks.world]:
        difference = (videos(positions).double() - originals(positions).double()) / 255
        error, pixels = error + float(difference.square().sum()), pixels + difference.numel()
    parts = ranks.gather((error, pixels))
    return sum(part[0] for part in parts) / sum(part[1] for part in parts)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of intensities in [0, 1]; at most 120."""
    return -10 * math.log10(max(error, 1e-12))
