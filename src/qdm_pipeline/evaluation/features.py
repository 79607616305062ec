"""`VideoClassifier`: a small video network whose features the Fréchet distance is measured in."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, channels_last_3d, nn

from qdm_pipeline.configuration import build, plain, require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json, write_atomic, write_json

# What is done to clips so that a network that tells one from the other has to look at time.
TRANSFORMS = ("untouched", "reversed", "shuffled", "upside down")


@settings
class ClassifierConfig:
    """Everything that is needed to build a classifier."""

    width: int  # channels of the first layer; later ones have two and four times as many
    features: int
    differences: bool  # from the frame before are an input beside each frame
    bound: float  # deviations, of the train clips, that no feature goes beyond
    classes: tuple[str, ...]  # empty: the clips have no labels, and there are no class logits

    def __post_init__(self) -> None:
        require(self.width >= 1, f"classifier width: found {self.width}, must be at least 1")
        require(self.features >= 2, f"classifier features: found {self.features}, must be at least 2")
        require(self.bound > 0, f"classifier bound: found {self.bound}, must be above 0")


class _Differences(nn.Module):
    """Video [B, 3, T, H, W] and its differences from the frame before, 0 for the first: [B, 6, T, H, W].

    A step of a pixel is lost on features that are formed a frame at a time at half the size; here it is an
    input.
    """

    def forward(self, video: Tensor) -> Tensor:
        return torch.cat([video, F.pad(video.diff(dim=2), (0, 0, 0, 0, 1, 0))], 1)


class _Affine(nn.Module):
    """A scale and a shift for each channel, set by the first data (actnorm: Kingma and Dhariwal 2018).

    In contrast to batch or group normalisation the result for a clip depends on no other clip, and
    brightness and contrast, which a measure of quality should see, are not divided away.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Make the channels of ``x`` [B, C, T, H, W] come out with mean 0 and deviation 1."""
        deviation, mean = torch.std_mean(x, (0, 2, 3, 4))
        self.scale.copy_(1 / (deviation.view_as(self.scale) + 1e-3))
        self.shift.copy_(-mean.view_as(self.shift) * self.scale)


def _space(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution of every frame."""
    layer = nn.Conv3d(channels_in, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    return [layer, _Affine(channels), nn.SiLU()]


def _time(channels: int) -> list[nn.Module]:
    """A convolution over 3 frames that halves the frame rate."""
    layer = nn.Conv3d(channels, channels, (3, 1, 1), (2, 1, 1), (1, 0, 0), bias=False)
    return [layer, _Affine(channels), nn.SiLU()]


class VideoClassifier(nn.Module):
    """A (2+1)-D convolutional network (Tran et al. 2018, arXiv:1711.11248).

    Besides its class the network learns what was done to a clip (``TRANSFORMS``), so that the features
    see time and not only single frames; clips without labels train it by that alone.

    Far from all clips it knows a network answers with numbers without bound, so that one sample in a thousand
    can make half of a Fréchet distance. Features are therefore bent, B tanh(z / B) in deviations z from the
    mean of the train clips; classes are told from what they were before.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.body = nn.Sequential(
            *([_Differences(), *_space(6, width, 2)] if config.differences else _space(3, width, 2)),
            *_space(width, 2 * width, 2),
            *_time(2 * width),
            *_space(2 * width, 4 * width, 2),
            *_time(4 * width),
            *_space(4 * width, 4 * width, 1),
        )
        self.to_features = nn.Linear(4 * width, config.features)
        self.class_head = nn.Linear(config.features, len(config.classes)) if config.classes else None
        self.transform_head = nn.Linear(config.features, len(TRANSFORMS))
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("deviation", torch.ones(config.features))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D] and class logits [B, classes] of video [B, 3, T, H, W] in [-1, 1], H, W >= 16."""
        embedding = self.embed(video)
        spread = self.config.bound * self.deviation
        features = self.mean + spread * torch.tanh((embedding - self.mean) / spread)
        return features, self.class_logits(embedding)

    def embed(self, video: Tensor) -> Tensor:
        """Features [B, D] before they are bent."""
        x = self.body(video.contiguous(memory_format=channels_last_3d))
        features: Tensor = self.to_features(x.mean((2, 3, 4)))
        return features

    def class_logits(self, embedding: Tensor) -> Tensor:
        """Class logits [B, classes] of clips with these embeddings [B, D]."""
        if self.class_head is None:
            return embedding.new_empty(len(embedding), 0)
        logits: Tensor = self.class_head(F.silu(embedding))
        return logits

    def transform_logits(self, embedding: Tensor) -> Tensor:
        """Logits [B, 4] of what was done to the clips with these embeddings."""
        return self.transform_head(F.silu(embedding))

    @torch.no_grad()
    def fit_bound(self, embeddings: Tensor) -> None:
        """Take mean and deviation of the train clips' ``embeddings`` [N, D]."""
        deviation, mean = torch.std_mean(embeddings, 0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=1e-6))  # a feature that is always the same stays so

    @torch.no_grad()
    def fit_scales(self, video: Tensor) -> None:
        """Set scale and shift of every layer by a first batch: without it the network learns far slower."""
        x = video.contiguous(memory_format=channels_last_3d)
        for layer in self.body:
            if isinstance(layer, _Affine):
                layer.fit(x)
            x = layer(x)

    @property
    def name(self) -> str:
        """What the features are, for the names of metrics."""
        learned = "classifier" if self.config.classes else "selfsup"
        differences = "-diff" if self.config.differences else ""
        return f"{learned}-2plus1d{differences}-{self.config.features}d-bound{self.config.bound:g}"

    def digest(self) -> str:
        """SHA-256 of the weights."""
        weights = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        return hashlib.sha256(save(weights)).hexdigest()


def save_classifier(model: VideoClassifier, directory: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` into ``directory``."""
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomic(directory / "model.safetensors", save(tensors))
    write_json(directory / "config.json", plain(model.config))


def load_classifier(path: Path) -> VideoClassifier:
    """The classifier in directory ``path``, ready to evaluate; `InputError` if it is missing or damaged."""
    model = VideoClassifier(build(ClassifierConfig, read_json(path / "config.json")))
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except (FileNotFoundError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path / 'model.safetensors'}: not a classifier's weights ({error})") from None
    return model.eval().requires_grad_(False)
