"""What a student is worth while it is being distilled: its samples against validation clips."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.diffusion.sampler import Sampler
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.evaluate import labels_of
from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.evaluation.frechet import frechet_with_interval
from qdm_pipeline.evaluation.judge import Judge
from qdm_pipeline.evaluation.readers import clip_reader
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import Condition, Path, QuantizedDiffusionPredictor
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.statistics import LatentSums
from qdm_pipeline.video.autoencoder import CausalVideoAutoencoder, to_uint8
from qdm_pipeline.video.shards import ShardSet

BATCH = 50
BLOCKS = 10


@settings
class ValidationSettings:
    """How often a student is looked at, on how many samples, and which one is kept."""

    every: int  # updates of the student
    samples: int
    keep: Literal["frechet", "accuracy", "last"]  # the best student by this metric is exported

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("samples", 2 * BLOCKS)):
            found = getattr(self, name)
            require(found >= least, f"{name}: found {found}, must be at least {least}")


class FewSteps(NamedTuple):
    """How a student samples."""

    sampler: Sampler
    times: tuple[float, ...]
    path: Path
    schedule: Schedule
    precision: Precision


class Validation:
    """Judges students on fixed noise and conditions, to the same figures on any number of ranks."""

    def __init__(
        self,
        settings: ValidationSettings,
        clips: ShardSet,
        autoencoder: CausalVideoAutoencoder,
        classifier: VideoClassifier,
        seed: int,
        ranks: Ranks,
    ) -> None:
        """`InputError` if the validation split has too few clips."""
        self.settings, self.seed, self.ranks = settings, seed, ranks
        rows = clips.rows("validation")[: settings.samples]
        if len(rows) < 2 * BLOCKS:
            raise InputError(
                f"{clips.directory}: split 'validation' has {len(rows)} clips, to judge a student takes "
                f"{2 * BLOCKS}; set distill.validation to null to do without"
            )
        # Asked for is what the first train clips show: captions of others may have words that are new.
        asked = clips.rows("train")[: settings.samples]
        self.positions = torch.arange(len(asked))  # in the train split
        self.autoencoder = autoencoder.to(ranks.device)
        self.judge = Judge(classifier.to(ranks.device), BATCH, BLOCKS, seed, ranks)
        labels = labels_of(clips)
        self.labels = labels[asked]
        self.reference = self.judge.tally(clip_reader(clips, rows), labels[rows])

    def __call__(
        self, model: QuantizedDiffusionPredictor, condition: Condition, how: FewSteps, shape: list[int]
    ) -> dict[str, float]:
        """Metrics of ``model`` asked for the ``condition`` of the train clips at `positions`; all ranks."""
        sums = LatentSums(model.config, shape, self.ranks)

        def read(positions: Tensor) -> Tensor:
            draw = generator(self.seed, int(positions[0]), 0, "validation")
            noise = torch.randn(len(positions), *shape, generator=draw).to(self.ranks.device)
            asked = condition.rows(positions).to(self.ranks.device)
            denoiser = GuidedDenoiser(model, asked, 1.0, how.path)
            with torch.inference_mode(), autocast(self.ranks.device, how.precision):
                latents = how.sampler(denoiser, noise, how.times, how.schedule, draw)
                sums.add(latents, asked.label, denoiser.tokens()["codes"].to(self.ranks.device))
                return to_uint8(self.autoencoder.decode(latents.float())).cpu()

        tally = self.judge.tally(read, self.labels)
        distance = frechet_with_interval(tally.blocks, self.reference.blocks)
        found = sums.take()
        metrics = {
            "frechet": distance.value,
            "frechet_low": distance.low,
            "frechet_high": distance.high,
            "accuracy": tally.accuracy,
            "utilization": found.utilization,
            "latent_mean": found.mean,
            "latent_std": found.std,
            "diversity": found.diversity,
            "perplexity": found.perplexity,
        }
        return {f"validation/{name}": value for name, value in metrics.items() if value is not None}
