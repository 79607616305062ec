"""What a codebook can carry: many codebooks behind one teacher, each read for the same samples.

The teacher of the project (`kedro run --pipelines preprocess`, then `teacher`) is kept as it is; for every
shape of codebook a quantizer is fitted to its features. `ours` is what is read through the codebook,
`floor` what the continuous path says; `ratio` is the one over the other.
"""

import math
import sys
from functools import reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import report
from qdm_pipeline.diffusion.sampler import ddim
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.evaluation.evaluate import labels_of
from qdm_pipeline.evaluation.features import load_classifier
from qdm_pipeline.evaluation.frechet import Moments, frechet_distance
from qdm_pipeline.evaluation.judge import Judge, Tally
from qdm_pipeline.evaluation.readers import clip_reader, latent_reader
from qdm_pipeline.files import read_json
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor
from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training import conditions
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.video.autoencoder import load_autoencoder
from qdm_pipeline.video.shards import ShardSet

DATA = Path(__file__).parent.parent / "data"
SHAPES = (  # groups, codes, numbers a code
    (1, 512, 16), (1, 4096, 16), (1, 16384, 16), (1, 4096, 8), (2, 512, 8), (4, 64, 4), (4, 512, 4),
    (4, 4096, 4), (8, 16, 2), (8, 64, 2), (8, 512, 2), (8, 512, 4), (16, 8, 1), (16, 32, 1),
)  # fmt: skip
STEPS, LESSONS, BATCH, SAMPLES, GUIDANCE = 400, 64, 64, 1000, 2.5  # lessons: batches, gone through in turn


def artefact(folder: str, name: str) -> Path:
    """What a handle of the project points to."""
    return DATA / folder / str(read_json(DATA / folder / f"{name}.json")["path"])


class Bench:
    """The teacher, its features of noised latents, and its samples' last features."""

    def __init__(self) -> None:
        self.model, config = load_predictor(artefact("06_models", "teacher"))
        self.latents = ShardSet(artefact("05_model_input", "latents"))
        self.rows = self.latents.rows("train")
        self.condition = conditions.of_clips(self.latents, self.rows, self.model.config)
        self.schedule = Schedule(config["schedule"]["name"], config["schedule"]["shift"])
        clips = ShardSet(artefact("02_intermediate", "clips"))
        self.autoencoder = load_autoencoder(artefact("06_models", "autoencoder"))
        self.judge = Judge(load_classifier(artefact("06_models", "classifier")), 50, 10, 0, Ranks())
        test = clips.rows("test")[:SAMPLES]
        self.reference = self.judge.tally(clip_reader(clips, test), labels_of(clips)[test])
        self.asked = self.condition.rows(torch.arange(SAMPLES))
        self.features = torch.cat([self._sample(part) for part in torch.arange(SAMPLES).split(100)])
        self.lessons = [self.noised(step, 0.02, 1.0)[1] for step in range(LESSONS)]

    @torch.inference_mode()
    def _sample(self, positions: Tensor) -> Tensor:
        draw = generator(0, int(positions[0]), 0, "capacity samples")
        noise = torch.randn(len(positions), *self.latents.manifest["shape"], generator=draw)
        denoiser = GuidedDenoiser(self.model, self.asked.rows(positions), GUIDANCE, "continuous")
        ddim(denoiser, noise, self.schedule.spaced(32), self.schedule, draw)
        assert denoiser.features is not None
        return denoiser.features

    def noised(self, step: int, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Clean latents of a batch and the teacher's features of them at times in [low, high]."""
        draw = generator(0, step, 0, "capacity")
        picked = torch.randint(len(self.rows), (BATCH,), generator=draw)
        x0 = self.latents.gather("latent", self.rows[picked])
        t = low + (high - low) * torch.rand(BATCH, generator=draw)
        x_t = self.schedule.add_noise(x0, torch.randn(x0.shape, generator=draw), t)
        with torch.no_grad():
            return x0, self.model.features(x_t, t, self.condition.rows(picked)).float()

    def fit(self, groups: int, size: int, dim: int) -> VectorQuantizer:
        """A quantizer of one shape, fitted behind the teacher."""
        settings = QuantizerSettings(
            kind="vq", codebook_size=size, codebook_dim=dim, groups=groups, decay=0.95, revival_threshold=0.1
        )
        torch.manual_seed(0)
        quantizer = VectorQuantizer(self.model.config.size.embedding_dim, settings)
        optimizer = torch.optim.AdamW(quantizer.parameters(), 3e-3, betas=(0.9, 0.99))
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            features = self.lessons[step % LESSONS]
            quantized = quantizer(features, collect=True)
            target = self.model.read(features, "continuous").x0
            loss = F.mse_loss(read(self.model, quantized.output), target) + 0.25 * quantized.commitment
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            quantizer.commit(0, step)
        return quantizer.requires_grad_(False)

    def judged(self, latents: Tensor) -> tuple[float, float]:
        """Distance and accuracy of samples."""
        assert self.asked.label is not None
        tally: Tally = self.judge.tally(latent_reader(latents, self.autoencoder), self.asked.label)
        ours, real = (reduce(Moments.merge, each.blocks) for each in (tally, self.reference))
        return frechet_distance(ours, real), tally.accuracy or 0.0


def read(model: QuantizedDiffusionPredictor, embedding: Tensor) -> Tensor:
    """Latents of embeddings by the projection that both paths share."""
    return model.read(embedding, "continuous").x0


def main(shapes: tuple[tuple[int, int, int], ...]) -> None:
    """One line a shape and figure."""
    bench = Bench()
    channels = bench.latents.manifest["shape"][0]
    continuous = read(bench.model, bench.features)
    distance, accuracy = bench.judged(continuous)
    clean = [bench.noised(10_000 + step, 0.02, 0.02) for step in range(8)]
    floor = sum(float((read(bench.model, h) - x0).square().mean()) for x0, h in clean) / len(clean)
    for groups, size, dim in shapes:
        quantizer = bench.fit(groups, size, dim)
        bits = groups * math.log2(size)
        case = f"{groups} x {size} codes of {dim}, {bits:.0f} bits, {bits / channels:.2f} a number"
        with torch.no_grad():
            errors = [float((read(bench.model, quantizer(h).output) - x0).square().mean()) for x0, h in clean]
            samples = torch.cat([read(bench.model, quantizer(h).output) for h in bench.features.split(100)])
        error = sum(errors) / len(errors)
        report(
            case,
            "squared error of clean latents",
            {"ours": error, "floor": floor},
            error / floor,
            0.0,
            ">= 0",
        )
        ours, right = bench.judged(samples)
        report(case, "frechet", {"ours": ours, "floor": distance}, ours / distance, 0.0, "<= 1.05")
        report(case, "accuracy", {"ours": right, "floor": accuracy}, right / accuracy, 0.0, ">= 0.98")


if __name__ == "__main__":
    chosen = tuple(tuple(map(int, argument.split("x"))) for argument in sys.argv[1:])
    main(chosen or SHAPES)  # type: ignore[arg-type]
