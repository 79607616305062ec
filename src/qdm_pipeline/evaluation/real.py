"""What real clips look like: the reference, the floor, and how far spoilt clips stand from them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from qdm_pipeline.evaluation.code_dropout import code_dropout, tokens_of
from qdm_pipeline.evaluation.corruptions import CORRUPTIONS, corrupted_reader
from qdm_pipeline.evaluation.data import Data, EvaluationSettings, labels_of, subset
from qdm_pipeline.evaluation.extractors import load_extractor
from qdm_pipeline.evaluation.frechet import Gaussian, distance
from qdm_pipeline.evaluation.observe import Observation, Observer
from qdm_pipeline.evaluation.readers import clip_reader, noise_reader, shuffled_reader
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.shards import ShardSet

BLIND = 1.5  # times the floor: an extractor is blind to a corruption that stands below


class RealClips:
    """Test clips, ``reference``, and train clips, ``floor``; kept from run to run by the observer.

    ``bank`` [N, D]: features of the first train clips, for looking for copies.
    """

    def __init__(self, settings: EvaluationSettings, data: Data, observer: Observer) -> None:
        self.settings, self.data, self.clips, self.observer = settings, data, data.clips, observer
        self.train, self.test = (subset(data.clips, split, settings) for split in ("train", "test"))
        self.labels = labels_of(data.clips)
        self.originals = clip_reader(data.clips, self.test)
        self.trained = clip_reader(data.clips, self.train)
        self.reference = observer.observe(self.originals, self.labels[self.test], self._key("test"))
        self.floor = observer.observe(self.trained, self.labels[self.train], self._key("train"))
        self.bank = bank(settings, data.clips, observer)

    def spoilt(self) -> dict[str, Observation]:
        """The train clips with their frames shuffled, and noise in their place."""
        labels, seed = self.labels[self.train], self.settings.seed
        readers = {"shuffled": shuffled_reader(self.trained, seed), "noise": noise_reader(self.trained, seed)}
        return {name: self.observer.observe(read, labels, self._key(name)) for name, read in readers.items()}

    def corruptions(self) -> list[dict[str, Any]]:
        """For each corruption at full strength its distance, and that over the floor of as many clean clips.

        ``seen`` is false where the extractor is blind to it.
        """
        count, ddof = min(self.settings.corrupted, len(self.train)), self.observer.extractor.ddof
        if count < 2:
            return []
        floor = distance(Gaussian.of_features(self.floor.features[:count], ddof), self.reference.gaussians[0])
        found = []
        for name in CORRUPTIONS:
            read = corrupted_reader(self.trained, name, 1.0, self.settings.seed)
            features = self.observer.features(read, count, self._key(name, count))
            apart = distance(Gaussian.of_features(features, ddof), self.reference.gaussians[0])
            ratio = apart / max(floor, 1e-12)
            found.append({"name": name, "frechet": apart, "ratio": ratio, "seen": ratio >= BLIND})
        return found

    def code_dropout(self) -> list[dict[str, Any]]:
        """What test clips lose with their codes; see `code_dropout.code_dropout`."""
        count = min(self.settings.corrupted, len(self.test))
        if count < 2:
            return []
        codes = tokens_of(self.data, self.test[:count], self.settings.batch)
        return code_dropout(self.data, codes, self.originals, self.observer, self.reference)

    def _key(self, *what: object) -> list[object]:
        return [self.clips.digest, self.settings.samples, self.settings.seed, *what]


def make_observer(settings: EvaluationSettings, data: Data, ranks: Ranks) -> Observer:
    """The observer that ``settings`` describe; `InputError` if its extractor is not there."""
    extractor = load_extractor(settings.extractor, Path(settings.weights), data.classifier, ranks.device)
    return Observer(
        extractor,
        data.classifier,
        settings.batch,
        settings.blocks,
        settings.seed,
        Path(settings.cache),
        ranks,
    )


def bank(settings: EvaluationSettings, clips: ShardSet, observer: Observer) -> Tensor:
    """Features of the first train clips: [N, D]."""
    rows = clips.rows("train")[: settings.train_clips]
    return observer.features(clip_reader(clips, rows), len(rows), [clips.digest, "bank", len(rows)])
