"""Training of the `CausalVideoAutoencoder` on the train split of the clips."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, require_whole, settings
from qdm_pipeline.loss_scale import LossScale
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.randomness import Batches, MicroBatch, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder, to_float
from qdm_pipeline.video.shards import ShardSet

PCA_CLIPS = 512
STATISTICS_CLIPS = 8192
EXPORT_BATCH = 64


@settings
class AutoencoderSettings:
    """The autoencoder and its training; the learning rate warms up, then falls to 0 as half a cosine.

    After ``steps`` the encoder, and so every latent, stays as it is, and the decoder learns on alone for
    ``decoder_steps``, with the same rise and fall of the rate and noise of ``decoder_noise``: a better
    picture of the same latents.
    ``latent_noise`` and ``kl_weight`` make it a variational autoencoder whose posterior has that standard
    deviation everywhere: latents that a generator, or a code, gets a little wrong still decode well.
    """

    model: AutoencoderConfig
    latent_noise: float
    decoder_noise: float
    kl_weight: float
    precision: Precision
    steps: int
    decoder_steps: int
    batch: int  # clips an optimizer step, on all ranks together
    micro_batch: int  # clips a forward pass
    learning_rate: float
    warmup: int
    weight_decay: float
    clip: float  # largest norm of the gradient
    log_every: int
    checkpoint: Retention
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch", "log_every"):
            found = getattr(self, name)
            require(found >= 1, f"autoencoder {name}: found {found}, must be at least 1")
        require_whole(self.batch, self.micro_batch)
        for name in ("learning_rate", "clip"):
            found = getattr(self, name)
            require(found > 0, f"autoencoder {name}: found {found}, must be above 0")
        for name in ("latent_noise", "decoder_noise", "kl_weight", "decoder_steps", "warmup", "weight_decay"):
            found = getattr(self, name)
            require(found >= 0, f"autoencoder {name}: found {found}, must not be negative")


class AutoencoderTask:
    """Least squared visible error of the reconstruction; see `training.loop` for the protocol."""

    sound = True
    last_loss: Tensor | None = None

    def __init__(self, settings: AutoencoderSettings, clips: ShardSet, ranks: Ranks) -> None:
        """Start as the PCA of some training clips; `InputError` if the clips' size does not fit the model."""
        self.settings, self.clips, self.ranks = settings, clips, ranks
        self.steps = settings.steps + settings.decoder_steps
        self.log_every, self.checkpoint = settings.log_every, settings.checkpoint
        self.rows = clips.rows("train")
        sizes = clips.size_of[self.rows]
        self.batches = Batches(
            sizes, settings.batch, settings.micro_batch, settings.seed, ranks.rank, ranks.world
        )
        torch.manual_seed(settings.seed)
        self.model = CausalVideoAutoencoder(settings.model)
        for shape in clips.shapes("video"):
            self.model.latent_shape(*shape[1:])
        same = clips.of_main_size().rows("train")
        self.model.start_as_pca(self._videos(self._subset(same, PCA_CLIPS)))
        self.model.to(ranks.device)
        self.wrapped = ranks.wrap(self.model)
        self.scale = LossScale(settings.precision, ranks)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One step; ``error`` is the squared `visible_error` of pixels, ``kl`` that of a latent in nats."""
        s, micros = self.settings, self.batches.of(step)
        total = torch.zeros(2, device=self.ranks.device)
        for micro in micros:
            with self.ranks.sync(self.wrapped, micro is micros[-1]):
                error, kl = self._losses(step, micro)
                self.scale((error + s.kl_weight * kl) / len(micros)).backward()
            total += torch.stack([error, kl]).detach() / len(micros)
        error, kl = self.last_loss = total
        if step >= s.steps:  # the optimizer passes over what has no gradient; DDP wants one of all parameters
            self.model.encoder.zero_grad()
        self.scale.undo(self.model.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip))
        taken, found = self.scale.judge(f"autoencoder, step {step}", norm)
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if taken:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {"error": error, "kl": kl} | found | {"learning_rate": rate}

    def _losses(self, step: int, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        s, device = self.settings, self.ranks.device
        video = self.ranks.onto(self._videos(self.rows[micro.rows]))
        draw = generator(s.seed, step, micro.number, "autoencoder noise")
        grid = self.model.latent_shape(*video.shape[2:])[1:]
        deviation = s.latent_noise if step < s.steps else s.decoder_noise
        noise = deviation * torch.randn(len(video), *grid, s.model.latent_channels, generator=draw)
        with autocast(device, s.precision):
            reconstruction, latents = self.wrapped(video, noise.to(device))
        error = visible_error(reconstruction.float(), video).square().mean()
        return error, latents.float().square().mean() / 2  # up to what only the fixed deviation adds

    def suspects(self, step: int) -> list[str]:
        """None: pixels are whole numbers."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | self.scale.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale.load_state_dict(state)

    def export(self, directory: Path) -> dict[str, Any]:
        """Measure the statistics of the train split's latents, write the model; returns ``psnr`` by split."""
        if not self.ranks.is_main:
            return {}
        self.model.eval()
        self._measure_latents()
        self.model.save(directory)
        held_out = {split: self._psnr(self.clips.rows(split)) for split in ("validation", "test")}
        return {"psnr": held_out, "latent_channels": self.settings.model.latent_channels}

    def _rate(self, step: int) -> float:
        s = self.settings
        step, steps = (step, s.steps) if step < s.steps else (step - s.steps, s.decoder_steps)
        warm = min(1.0, (step + 1) / (s.warmup + 1))
        return s.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))

    def _subset(self, rows: Tensor, count: int) -> Tensor:
        draw = generator(self.settings.seed, 0, 0, "autoencoder subset")  # the same rows on every rank
        return rows[torch.randperm(len(rows), generator=draw)[:count]]

    def _videos(self, rows: Tensor) -> Tensor:
        return to_float(self.clips.gather("video", rows))

    @torch.inference_mode()
    def _measure_latents(self) -> None:
        """Set the model's mean and std so that its latents have mean 0 and std 1 per channel."""
        count = 0
        total = torch.zeros(2, self.settings.model.latent_channels, dtype=torch.float64)
        self.model.mean.zero_()
        self.model.std.fill_(1)
        subset = self._subset(self.rows, STATISTICS_CLIPS)
        by_size = subset[self.clips.size_of[subset].argsort(stable=True)]
        for rows in self.clips.parts(by_size, EXPORT_BATCH):
            latents = self.model.encode(self._videos(rows).to(self.ranks.device)).double().cpu()
            total += torch.stack([latents.sum((0, 2, 3, 4)), latents.square().sum((0, 2, 3, 4))])
            count += latents[:, 0].numel()
        mean, square = total / count
        self.model.mean.copy_(mean)
        self.model.std.copy_((square - mean.square()).sqrt())

    @torch.inference_mode()
    def _psnr(self, rows: Tensor) -> float:
        """PSNR in dB of the mean squared error of all pixels of the clips at ``rows``, clamped to [-1, 1]."""
        total, count = 0.0, 0
        for part in self.clips.parts(rows, EXPORT_BATCH):
            video = self._videos(part).to(self.ranks.device)
            error = self.model.decode(self.model.encode(video)).clamp(-1, 1) - video
            total, count = total + float(error.double().square().sum()), count + error.numel()
        return 10 * math.log10(4 * count / max(total, 1e-12))


def visible_error(reconstruction: Tensor, video: Tensor) -> Tensor:
    """Difference of ``reconstruction`` from ``video`` in [-1, 1], 0 where black is blacker, white whiter.

    Pixels are clipped to [-1, 1] before anybody sees them. A decoder that need not hit black exactly can keep
    well below it, where what ripples is not seen.
    """
    beyond = ((video <= -1) & (reconstruction < video)) | ((video >= 1) & (reconstruction > video))
    return (reconstruction - video).masked_fill(beyond, 0)
