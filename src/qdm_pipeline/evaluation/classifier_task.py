"""Training of the `VideoClassifier` on the train split of the clips."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdm_pipeline.configuration import require, require_whole, settings
from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.evaluation.features import TRANSFORMS, ClassifierConfig, VideoClassifier, save_classifier
from qdm_pipeline.randomness import Batches, MicroBatch, epoch_rows, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.video.autoencoder import to_float
from qdm_pipeline.video.shards import ShardSet

logger = logging.getLogger(__name__)

FIRST_CLIPS = 128  # that set the scales of the layers
EXPORT_BATCH = 100
BOUND_CLIPS = 4096  # at most, that say how far features go


@settings
class ClassifierSettings:
    """Classifier and training; the learning rate warms up over 5 % of the steps, then falls as half a cosine.

    differences, bound: see `ClassifierConfig`. transformed: share of the clips of a batch that are reversed,
    shuffled or turned upside down.
    max_shift (pixels), brightness (intensities times 1 ± this): augmentation that no label minds.
    """

    width: int
    features: int
    differences: bool
    bound: float
    steps: int
    batch: int  # clips an optimizer step, on all ranks together
    micro_batch: int  # clips a forward pass
    learning_rate: float
    weight_decay: float
    transformed: float
    max_shift: int
    brightness: float
    log_every: int
    checkpoint: Retention
    seed: int

    def __post_init__(self) -> None:
        for name in ("width", "steps", "micro_batch", "log_every"):
            found = getattr(self, name)
            require(found >= 1, f"classifier {name}: found {found}, must be at least 1")
        require_whole(self.batch, self.micro_batch)
        rate, share, gain = self.learning_rate, self.transformed, self.brightness
        require(self.features >= 2, f"classifier features: found {self.features}, must be at least 2")
        require(rate > 0, f"classifier learning_rate: found {rate}, must be positive")
        require(0 < share < 1, f"classifier transformed: found {share}, must lie in (0, 1)")
        require(self.max_shift >= 0, f"classifier max_shift: found {self.max_shift}, must not be negative")
        require(0 <= gain < 1, f"classifier brightness: found {gain}, must lie in [0, 1)")


class _BothHeads(nn.Module):
    """All parameters in one forward pass, as averaging gradients over ranks wants it."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.model.embed(video)
        return self.model.class_logits(embedding), self.model.transform_logits(embedding)


class ClassifierTask:
    """Learns the class of untouched clips and the transform of all; see `training.loop` for the protocol.

    Clips without labels, or all of one class, train it by the transforms alone.
    """

    sound = True
    last_loss: Tensor | None = None

    def __init__(self, settings: ClassifierSettings, clips: ShardSet, ranks: Ranks) -> None:
        self.settings, self.clips, self.ranks = settings, clips, ranks
        self.steps = settings.steps
        self.log_every, self.checkpoint = settings.log_every, settings.checkpoint
        self.rows = clips.rows("train")
        sizes = clips.size_of[self.rows]
        self.batches = Batches(
            sizes, settings.batch, settings.micro_batch, settings.seed, ranks.rank, ranks.world
        )
        self.labels = torch.tensor([-1 if label is None else label for label in clips.column("label")])
        classes: tuple[str, ...] = ()
        if len(self.labels[self.rows].unique()) - int((self.labels[self.rows] < 0).any()) >= 2:
            classes = tuple(clips.manifest["classes"])
        elif ranks.is_main:
            logger.warning(
                "%s: no two classes to learn; features come from self-supervision, accuracy is not measured",
                clips.directory,
            )
        torch.manual_seed(settings.seed)
        config = ClassifierConfig(
            width=settings.width,
            features=settings.features,
            differences=settings.differences,
            bound=settings.bound,
            classes=classes,
        )
        self.model = VideoClassifier(config).to(ranks.device)
        same = clips.of_main_size().rows("train")
        first = epoch_rows(len(same), 0, FIRST_CLIPS, settings.seed)  # the same on every rank
        self.model.fit_scales(to_float(clips.gather("video", same[first])).to(ranks.device))
        self.wrapped = ranks.wrap(_BothHeads(self.model))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=settings.weight_decay)

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One step; losses in nats, accuracies as shares of this rank's part of the batch."""
        micros, totals = self.batches.of(step), dict[str, Tensor]()
        for micro in micros:
            with self.ranks.sync(self.wrapped, micro is micros[-1]):
                scores = self._scores(step, micro)
                (scores["loss"] / len(micros)).backward()
            for name, value in scores.items():
                totals[name] = totals.get(name, 0) + value.detach() / len(micros)
        self.last_loss = totals["loss"]
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), math.inf))
        if not math.isfinite(norm):
            raise DivergenceError(f"classifier, step {step}: not finite: gradient norm is {norm}")
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**totals, "learning_rate": rate}

    def _scores(self, step: int, micro: MicroBatch) -> dict[str, Tensor]:
        video, labels, transforms = (part.to(self.ranks.device) for part in self._batch(step, micro))
        logits, transform_logits = self.wrapped(video)
        loss, accuracy = _score(transform_logits, transforms)
        scores = {"loss": loss, "transform_loss": loss, "transform_accuracy": accuracy}
        if self.model.config.classes:
            class_loss, accuracy = _score(logits, labels.where(transforms == 0, -1))
            scores |= {"loss": loss + class_loss, "class_loss": class_loss, "class_accuracy": accuracy}
        return scores

    def suspects(self, step: int) -> list[str]:
        """None: pixels are whole numbers."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, directory: Path) -> dict[str, Any]:
        """Write the classifier; returns its name and its accuracy on the splits that it has not seen."""
        if not self.ranks.is_main:
            return {}
        self._fit_bound()
        save_classifier(self.model, directory)
        accuracies = {split: self._accuracy(split) for split in ("validation", "test")}
        return {
            "features": self.model.name,
            "classes": list(self.model.config.classes),
            "accuracy": accuracies,
        }

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.steps // 20))
        return self.settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _batch(self, step: int, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented clips float [B, 3, T, H, W] in [-1, 1], their labels [B] and transforms [B]."""
        s, rows = self.settings, self.rows[micro.rows]
        draw = generator(s.seed, step, micro.number, "classifier augmentation")
        transforms = torch.randint(1, len(TRANSFORMS), (len(rows),), generator=draw)
        transforms[torch.rand(len(rows), generator=draw) >= s.transformed] = 0
        shifts = torch.randint(-s.max_shift, s.max_shift + 1, (len(rows), 2), generator=draw)
        gains = 1 + s.brightness * (2 * torch.rand(len(rows), generator=draw) - 1)
        changed = [
            transformed(shifted(clip, *shift), TRANSFORMS[kind], draw)
            for clip, shift, kind in zip(
                self.clips.gather("video", rows), shifts.tolist(), transforms.tolist(), strict=True
            )
        ]
        video = (to_float(torch.stack(changed)) + 1) * gains.view(-1, 1, 1, 1, 1) - 1
        return video.clamp(max=1), self.labels[rows], transforms

    @torch.inference_mode()
    def _fit_bound(self) -> None:
        """By train clips as they are."""
        count = min(len(self.rows), BOUND_CLIPS)
        some = epoch_rows(len(self.rows), 0, count, self.settings.seed).sort().values
        parts = self.clips.parts(self.rows[some], EXPORT_BATCH)
        self.model.fit_bound(torch.cat([self.model.embed(self._video(part)) for part in parts]))

    def _video(self, rows: Tensor) -> Tensor:
        return to_float(self.clips.gather("video", rows)).to(self.ranks.device)

    @torch.inference_mode()
    def _accuracy(self, split: str) -> float | None:
        """Share of the labelled clips of ``split`` that are recognised; None without any."""
        rows = self.clips.rows(split)
        rows = rows[self.labels[rows] >= 0]
        if not self.model.config.classes or len(rows) == 0:
            return None
        correct = 0
        for part in self.clips.parts(rows, EXPORT_BATCH):
            correct += int((self.model(self._video(part))[1].argmax(1).cpu() == self.labels[part]).sum())
        return correct / len(rows)


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and accuracy where ``targets`` is not negative; 0 where it is nowhere."""
    known = targets >= 0
    count = known.sum().clamp(min=1)
    loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / count
    return loss, (logits.argmax(1) == targets).sum() / count


def shifted(clip: Tensor, down: int, right: int) -> Tensor:
    """``clip`` [..., H, W] moved by whole pixels; its border is repeated where nothing moves in."""
    height, width = clip.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return clip[..., rows[:, None], columns]


def transformed(clip: Tensor, kind: str, draw: torch.Generator) -> Tensor:
    """``clip`` [3, T, H, W] after one of ``TRANSFORMS``."""
    match kind:
        case "reversed":
            return clip.flip(1)
        case "shuffled":
            return clip[:, torch.randperm(clip.shape[1], generator=draw)]
        case "upside down":
            return clip.flip(2)
        case _:
            return clip
