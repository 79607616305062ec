"""Training of the `VideoClassifier` on the train split of the clips."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.evaluation.features import TRANSFORMS, ClassifierConfig, VideoClassifier, save_classifier
from qdm_pipeline.randomness import batch_indices, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.shards import ShardSet


@settings
class ClassifierSettings:
    """How large a classifier to train, and how. The learning rate warms up over 5 % of the steps, then falls to 0."""

    width: int
    features: int
    steps: int
    batch_per_rank: int
    learning_rate: float
    weight_decay: float
    transformed: float  # share of the clips of a batch that are reversed, shuffled or turned upside down
    max_shift: int  # augmentation: pixels
    brightness: float  # augmentation: intensities are multiplied by 1 ± this
    log_every: int
    checkpoint_every: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_per_rank", "log_every", "checkpoint_every"):
            require(
                getattr(self, name) >= 1,
                f"classifier {name}: found {getattr(self, name)}, must be at least 1",
            )
        require(
            self.learning_rate > 0, f"classifier learning_rate: found {self.learning_rate}, must be positive"
        )
        require(
            0 < self.transformed < 1, f"classifier transformed: found {self.transformed}, must lie in (0, 1)"
        )
        require(self.max_shift >= 0, f"classifier max_shift: found {self.max_shift}, must not be negative")
        require(
            0 <= self.brightness < 1, f"classifier brightness: found {self.brightness}, must lie in [0, 1)"
        )


class _WithTransforms(nn.Module):
    """Both heads in one forward pass, as gradient averaging over ranks wants it."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.model(video)
        return logits, self.model.transform_logits(features)


class ClassifierTask:
    """Learns the class of untouched clips and the transform of all; see `training.loop` for the protocol.

    Clips without labels, or all of one class, train it by the transforms alone.
    """

    def __init__(self, settings: ClassifierSettings, clips: ShardSet, ranks: Ranks) -> None:
        self.settings, self.clips, self.ranks = settings, clips, ranks
        self.steps, self.log_every, self.checkpoint_every = (
            settings.steps,
            settings.log_every,
            settings.checkpoint_every,
        )
        self.rows = clips.rows("train")
        self.labels = torch.tensor([-1 if label is None else label for label in clips.column("label")])
        seen = set(self.labels[self.rows].tolist()) - {-1}
        classes = tuple(clips.manifest["classes"]) if len(seen) > 1 else ()
        torch.manual_seed(settings.seed)
        self.model = VideoClassifier(
            ClassifierConfig(width=settings.width, features=settings.features, classes=classes)
        ).to(ranks.device)
        first = clips.gather("video", self.rows[batch_indices(len(self.rows), 128, settings.seed, 0, 0, 1)])
        self.model.fit_scales(first.to(ranks.device) / 127.5 - 1)
        self.wrapped = ranks.wrap(_WithTransforms(self.model))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One step; the losses and accuracies are those of this rank's batch."""
        video, labels, transforms = (part.to(self.ranks.device) for part in self._batch(step))
        logits, transform_logits = self.wrapped(video)
        transform_loss = F.cross_entropy(transform_logits, transforms)
        metrics: dict[str, float | Tensor] = {"transform_loss": transform_loss.detach()}
        metrics["transform_accuracy"] = (transform_logits.argmax(1) == transforms).float().mean()
        loss = transform_loss
        if self.model.config.classes:
            known = (transforms == 0) & (labels >= 0)
            class_loss = F.cross_entropy(logits[known], labels[known])
            loss = loss + class_loss
            metrics["class_loss"] = class_loss.detach()
            metrics["class_accuracy"] = (logits[known].argmax(1) == labels[known]).float().mean()
        rate = _rate(step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {**metrics, "loss": loss.detach(), "learning_rate": rate}

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented clips float [B, 3, T, H, W] in [-1, 1], their labels [B] and transforms [B]."""
        settings, ranks = self.settings, self.ranks
        rows = self.rows[
            batch_indices(
                len(self.rows), settings.batch_per_rank, settings.seed, step, ranks.rank, ranks.world
            )
        ]
        draw = generator(settings.seed, step, ranks.rank, "classifier augmentation")
        transforms = torch.randint(1, len(TRANSFORMS), (len(rows),), generator=draw)
        transforms[torch.rand(len(rows), generator=draw) >= settings.transformed] = 0
        shifts = torch.randint(-settings.max_shift, settings.max_shift + 1, (len(rows), 2), generator=draw)
        gains = 1 + settings.brightness * (2 * torch.rand(len(rows), generator=draw) - 1)
        clips = self.clips.gather("video", rows)
        video = torch.stack(
            [
                transform(shifted(clip, *shift), TRANSFORMS[kind], draw)
                for clip, shift, kind in zip(clips, shifts.tolist(), transforms.tolist(), strict=True)
            ]
        )
        return (video * (gains.view(-1, 1, 1, 1, 1) / 127.5) - 1).clamp(max=1), self.labels[rows], transforms

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, directory: Path) -> dict[str, Any]:
        """Write the classifier; returns its name and its accuracy on the splits that it has not seen."""
        save_classifier(self.model, directory)
        accuracies = {split: self._accuracy(split) for split in ("validation", "test")}
        return {
            "features": self.model.name,
            "classes": len(self.model.config.classes),
            "accuracy": accuracies,
        }

    @torch.inference_mode()
    def _accuracy(self, split: str) -> float | None:
        """Share of the labelled clips of ``split`` that are recognised; None without any."""
        rows = self.clips.rows(split)
        rows = rows[self.labels[rows] >= 0]
        if not self.model.config.classes or len(rows) == 0:
            return None
        self.model.eval()
        correct = 0
        for part in rows.split(100):
            video = self.clips.gather("video", part).to(self.ranks.device)
            answers = self.model(video / 127.5 - 1)[1].argmax(1).cpu()
            correct += int((answers == self.labels[part]).sum())
        self.model.train()
        return correct / len(rows)


def _rate(step: int, settings: ClassifierSettings) -> float:
    warm_up = max(1, settings.steps // 20)
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.learning_rate * min(1.0, (step + 1) / warm_up) * cosine


def shifted(clip: Tensor, down: int, right: int) -> Tensor:
    """``clip`` [..., H, W] moved by whole pixels; its border is repeated where nothing moves in."""
    height, width = clip.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return clip[..., rows[:, None], columns]


def transform(clip: Tensor, kind: str, draw: torch.Generator) -> Tensor:
    """``clip`` [3, T, H, W] after one of ``TRANSFORMS``."""
    match kind:
        case "reversed":
            return clip.flip(1)
        case "shuffled":
            return clip[:, torch.randperm(clip.shape[1], generator=draw)]
        case "upside down":
            return clip.flip(2)
    return clip
