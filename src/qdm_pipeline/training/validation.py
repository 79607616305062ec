"""What a student is worth while it is being distilled: its samples against validation clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.diffusion.sampler import Sampler
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.evaluation.evaluate import labels_of
from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.evaluation.frechet import frechet_trimmed, frechet_with_interval
from qdm_pipeline.evaluation.judge import Judge
from qdm_pipeline.evaluation.readers import clip_reader
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import Condition, QuantizedDiffusionPredictor
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.statistics import LatentSums
from qdm_pipeline.video.autoencoder import to_uint8
from qdm_pipeline.video.latents import VideoAutoencoder
from qdm_pipeline.video.media import write_animation
from qdm_pipeline.video.shards import ShardSet

BATCH = 50
BLOCKS = 10
LEAST = 2 * BLOCKS  # clips
SHOWN, COLUMNS = 20, 10  # samples in a picture


@settings
class ValidationSettings:
    """How often a student is looked at, on how many samples, and which one is kept."""

    every: int  # updates of the student
    samples: int
    keep: Literal["frechet", "frechet_trimmed", "accuracy", "last"]  # the best student by it is exported

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("samples", LEAST)):
            found = getattr(self, name)
            require(found >= least, f"{name}: found {found}, must be at least {least}")


class How(NamedTuple):
    """How a model is sampled."""

    sampler: Sampler
    times: Sequence[float]
    path: Literal["continuous", "quantized"]
    guidance: float
    schedule: Schedule
    precision: Precision


class Validation:
    """Judges students on fixed noise and conditions, to the same figures on any number of ranks."""

    def __init__(
        self,
        settings: ValidationSettings,
        clips: ShardSet,
        autoencoder: VideoAutoencoder,
        classifier: VideoClassifier,
        seed: int,
        ranks: Ranks,
    ) -> None:
        """Judge against the first clips of the validation split, at least `LEAST`, of the main size."""
        self.settings, self.seed, self.ranks = settings, seed, ranks
        same = clips.of_main_size()
        rows = same.rows("validation")[: settings.samples]
        # Asked for is what the first train clips show: captions of others may have words that are new.
        asked = same.rows("train")[: settings.samples]
        self.positions = torch.searchsorted(clips.rows("train"), asked)  # in the train split
        self.autoencoder, self.fps = autoencoder.to(ranks.device), round(clips.manifest["fps"])
        self.judge = Judge(classifier.to(ranks.device), BATCH, BLOCKS, seed, ranks)
        labels = labels_of(clips)
        self.labels = labels[asked]
        self.reference = self.judge.tally(clip_reader(clips, rows), labels[rows])

    def __call__(
        self, model: QuantizedDiffusionPredictor, condition: Condition, how: How, shape: Sequence[int]
    ) -> dict[str, float]:
        """Metrics of ``model`` asked for the ``condition`` of the train clips at `positions`; all ranks."""
        sums = LatentSums(model.config, [shape], self.ranks)

        def read(positions: Tensor) -> Tensor:
            asked = condition.rows(positions)
            latents, codes = self._sample(model, asked, positions, how, shape)
            label = None if asked.label is None else asked.label.to(self.ranks.device)
            sums.add(latents, label, codes)
            return self._decode(latents)

        tally = self.judge.tally(read, self.labels)
        distance = frechet_with_interval(tally.blocks, self.reference.blocks)
        found = sums.take()
        metrics = {
            "frechet": distance.value,
            "frechet_low": distance.low,
            "frechet_high": distance.high,
            "frechet_trimmed": frechet_trimmed(tally.blocks, self.reference.blocks),
            "accuracy": tally.accuracy,
            "identity": tally.identity,
            "utilization": found.utilization,
            "latent_mean": found.mean,
            "latent_std": found.std,
            "diversity": found.diversity,
            "perplexity": found.perplexity,
        }
        return {f"validation/{name}": value for name, value in metrics.items() if value is not None}

    def show(
        self,
        file: Path,
        model: QuantizedDiffusionPredictor,
        condition: Condition,
        how: How,
        shape: Sequence[int],
    ) -> None:
        """Write an animation of the first samples that ``model`` makes, always from the same noise."""
        positions = self.positions[:SHOWN]
        latents, _ = self._sample(model, condition.rows(positions), positions, how, shape)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_animation(file, self._decode(latents), COLUMNS, self.fps, scale=2)

    @torch.inference_mode()
    def _sample(
        self,
        model: QuantizedDiffusionPredictor,
        condition: Condition,
        positions: Tensor,
        how: How,
        shape: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        draw = generator(self.seed, int(positions[0]), 0, "validation")
        noise = torch.randn(len(positions), *shape, generator=draw).to(self.ranks.device)
        denoiser = GuidedDenoiser(model, condition.to(self.ranks.device), how.guidance, how.path)
        with autocast(self.ranks.device, how.precision):
            latents = how.sampler(denoiser, noise, how.times, how.schedule, draw)
            return latents.float(), denoiser.tokens()["codes"].to(self.ranks.device)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> Tensor:
        return to_uint8(self.autoencoder.decode(latents)).cpu()
