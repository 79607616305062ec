"""Sets of videos to tables of what was seen in them, the same on any number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from qdm_pipeline.evaluation.extractors import Extractor
from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.evaluation.frechet import Gaussian, Moments, leave_out
from qdm_pipeline.evaluation.intervals import random_blocks
from qdm_pipeline.evaluation.motion import motion
from qdm_pipeline.evaluation.patches import patches
from qdm_pipeline.evaluation.readers import Reader
from qdm_pipeline.files import digest_json, write_atomic
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.autoencoder import to_float

Table = dict[str, Tensor]  # columns of one length
TABLE = 3  # of its columns: another number, and what was kept is looked at again


@dataclass(frozen=True)
class Observation:
    """Of N videos: features [N, D], those of the first frame held still [N, D], class logits [N, K].

    ``motion`` [N, 2] and ``patches`` [N, P, S] as their modules say; ``drift`` [N] how far features of the
    first and of the last frame, each held still, lie apart, ``same`` [N] whether both show the classifier one
    class (NaN without classes); ``labels`` int64 [N] what was asked for (-1: nothing), ``block_of`` int64 [N]
    which of the ``blocks`` of the jack-knife each is in; ``ddof`` of covariances.
    """

    features: Tensor
    stills: Tensor
    logits: Tensor
    motion: Tensor
    patches: Tensor
    drift: Tensor
    same: Tensor
    labels: Tensor
    block_of: Tensor
    blocks: int
    ddof: int

    @cached_property
    def gaussians(self) -> list[Gaussian]:
        """Of the features: of all videos, then without each block."""
        return leave_out(self.features, self.block_of, self.blocks, self.ddof)

    @cached_property
    def close_up(self) -> Gaussian:
        """Of the patches of all videos, intensities in [0, 1]."""
        moments = Moments.empty(self.patches.shape[2])
        for some in self.patches.split(1000):
            moments = moments.add(some.flatten(0, 1).double() / 255)
        return Gaussian.of_moments(moments)

    @property
    def accuracy(self) -> float | None:
        """Share of the asked classes that are recognised; None if nothing was asked."""
        asked = self.labels >= 0
        if not self.logits.shape[1] or not asked.any():
            return None
        return float((self.logits.argmax(1) == self.labels)[asked].double().mean())


class Observer:
    """Looks at videos batch by batch; what real clips look like is kept in ``cache`` from run to run."""

    def __init__(
        self,
        extractor: Extractor,
        classifier: VideoClassifier,
        batch: int,
        blocks: int,
        seed: int,
        cache: Path,
        ranks: Ranks,
    ) -> None:
        self.extractor, self.classifier, self.batch, self.ranks = extractor, classifier, batch, ranks
        self.blocks, self.seed, self.cache = blocks, seed, cache
        self.embedded = extractor.name == classifier.name
        self.digests = [extractor.digest, classifier.digest()]

    def observe(self, videos: Reader, labels: Tensor, key: object = None) -> Observation:
        """Look at the videos at positions 0 to N - 1, asked to show ``labels`` [N]; all ranks.

        ``key``, JSON-like, says what these videos are, where that is worth keeping.
        """
        table = self._cached(key, lambda: self._collect(videos, len(labels), self._look))
        draw = generator(self.seed, 0, 0, "jack-knife blocks")
        blocks = random_blocks(len(labels), self.blocks, draw)
        return Observation(
            **table, labels=labels, block_of=blocks, blocks=self.blocks, ddof=self.extractor.ddof
        )

    def features(self, videos: Reader, count: int, key: object = None) -> Tensor:
        """Features only: [N, D]; all ranks."""
        return self._cached(
            key, lambda: self._collect(videos, count, lambda video: {"features": self.extractor(video)})
        )["features"]

    def _collect(self, videos: Reader, count: int, look: Callable[[Tensor], Table]) -> Table:
        """Whole batches are dealt out to ranks, so what is seen does not depend on their number."""
        batches = torch.arange(count).split(self.batch)
        mine = [look(videos(positions)) for positions in batches[self.ranks.rank :: self.ranks.world]]
        dealt = self.ranks.gather(mine)
        tables = [dealt[i % self.ranks.world][i // self.ranks.world] for i in range(len(batches))]
        return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}

    @torch.inference_mode()
    def _look(self, video: Tensor) -> Table:
        features, logits = self._see(video)
        stills, first = self._see(video[:, :, :1].expand_as(video))
        others, last = self._see(video[:, :, -1:].expand_as(video))
        known = logits.shape[1] > 0
        same = (first.argmax(1) == last.argmax(1)).float() if known else torch.full((len(video),), torch.nan)
        return {
            "features": features,
            "stills": stills,
            "logits": logits,
            "motion": motion(video),
            "patches": patches(video),
            "drift": (stills - others).norm(dim=1),
            "same": same,
        }

    def _see(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Features and class logits."""
        features, logits = self.classifier(to_float(video.to(self.ranks.device)))
        seen = self.extractor.checked(features, len(video)) if self.embedded else self.extractor(video)
        return seen, logits.cpu()

    def _cached(self, key: object, compute: Callable[[], Table]) -> Table:
        if key is None:
            return compute()
        name = digest_json([key, self.digests, self.batch, TABLE])
        file = self.cache / f"{name[:16]}.safetensors"
        found = self.ranks.gather(load_file(file) if self.ranks.is_main and file.exists() else None)[0]
        if found is None:
            found = compute()
            if self.ranks.is_main:
                write_atomic(file, save({name: value.contiguous() for name, value in found.items()}))
        return found
