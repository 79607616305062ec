"""`QuantizedVideoPipeline`: a predictor, its autoencoder and how to sample it, from one directory."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.configuration import build, plain
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import directory_atomic, read_json, write_json
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor
from qdm_pipeline.training.generate import Generation, GenerationSettings, prepare
from qdm_pipeline.training.int8 import Weights
from qdm_pipeline.training.model_files import load_predictor, write_predictor
from qdm_pipeline.video.autoencoder import load_autoencoder, to_videos
from qdm_pipeline.video.diffusers_autoencoder import DiffusersAutoencoder
from qdm_pipeline.video.latents import VideoAutoencoder

FORMAT = 2
LIBRARIES = ("torch", "einops", "numpy", "safetensors")  # that every export needs where it is used


class Generated(NamedTuple):
    """Samples, on the CPU."""

    videos: Tensor  # uint8 RGB [B, 3, T, H, W]
    latents: Tensor  # float32 [B, C, T', H', W']
    codes: Tensor  # int32 [B, G, T', H', W']
    residual: Tensor | None  # [B, R, T', H', W'], where the model keeps one beside its codes


class QuantizedVideoPipeline:
    """A student or teacher with all that it needs to make videos.

    The directory that `from_pretrained` reads holds ``pipeline.json`` (how the model was sampled, frames a
    second), ``predictor`` (weights, classes or vocabulary, schedule, step list) and ``autoencoder`` (weights,
    statistics of the latents).
    """

    def __init__(
        self,
        predictor: QuantizedDiffusionPredictor,
        config: dict[str, Any],
        autoencoder: VideoAutoencoder,
        settings: GenerationSettings,
        fps: int,
    ) -> None:
        """Parts as `load_predictor` and `load_autoencoder` give them; ``settings`` is what calls change."""
        prepare(predictor, settings)
        self.predictor, self.config, self.autoencoder = predictor, config, autoencoder
        self.settings, self.fps = settings, fps

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, weights: Weights | None = None, compile: bool | None = None
    ) -> "QuantizedVideoPipeline":
        """The pipeline in ``directory``, on the CPU; None leaves weights and compilation as exported.

        Raises `InputError` if the directory is not one of a pipeline, or if diffusers or torchao are needed
        and not installed.
        """
        file = Path(directory) / "pipeline.json"
        if not file.exists():
            raise InputError(f"{file}: no such file; the directory must be one that a pipeline was saved in")
        stored = read_json(file)
        if stored.get("format") != FORMAT:
            raise InputError(f"{file}: format is {stored.get('format')!r}, this version reads {FORMAT}")
        settings = build(GenerationSettings, stored["sampling"])
        settings = replace(
            settings,
            weights=settings.weights if weights is None else weights,
            compile=settings.compile if compile is None else compile,
        )
        predictor, config = load_predictor(file.parent / "predictor")
        return cls(predictor, config, load_autoencoder(file.parent / "autoencoder"), settings, stored["fps"])

    def save_pretrained(self, directory: str | Path) -> None:
        """Write all that `from_pretrained` reads; `InputError` if the weights have been rounded.

        A directory that stands there is replaced once the new one is complete.
        """
        if self.settings.weights != "full":
            raise InputError(f"{directory}: rounded weights are not saved; load with weights='full' and save")
        with directory_atomic(Path(directory)) as folder:
            write_pipeline(folder, self.predictor, self.config, self.autoencoder, self.settings, self.fps)

    def to(self, device: torch.device | str) -> "QuantizedVideoPipeline":
        """Move the networks; returns itself."""
        self.predictor.to(device)
        self.autoencoder.to(device)
        return self

    def __call__(
        self,
        asked: Sequence[str] | None = None,
        count: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Generated:
        """Make ``count`` videos of what is ``asked`` for: class names or captions, taken in turn.

        None stands for what the model was sampled with when it was exported: everything it was asked for
        (all classes, if nothing was chosen), its steps, its guidance, its ``size`` (height and width in
        pixels); a ``count`` of None, for one of each that is asked for here, or one. The same count, seed and
        settings give the samples of the sampling job. Raises `InputError` for a class or word that the model
        does not know, or a size that it cannot make.
        """
        settings, asked = self.settings, [asked] if isinstance(asked, str) else asked
        settings = replace(
            settings,
            asked=settings.asked if asked is None else tuple(asked),
            count=len(asked or [""]) if count is None else count,
            seed=seed,
            steps=settings.steps if steps is None else steps,
            times=settings.times if steps is None else None,
            guidance=settings.guidance if guidance is None else guidance,
            size=settings.size if size is None else size,
        )
        generation = Generation(settings, self.predictor, self.config)
        parts = [generation.batch(number) for number in range(len(generation.batches))]
        made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        videos = to_videos(self.autoencoder, made["latents"])
        return Generated(videos, made["latents"], made["codes"], made.get("residual"))

    @torch.inference_mode()
    def decode_codes(self, codes: Tensor, residual: Tensor | None = None) -> Tensor:
        """Videos uint8 [B, 3, T, H, W] of codes [B, G, T', H', W'] and what the model keeps beside them.

        The very bits of the call that gave the codes, if the model answers through its codebook (a student
        does), also for some of its samples alone.
        """
        device = self.autoencoder.mean.device
        moved = None if residual is None else residual.to(device)
        return to_videos(self.autoencoder, self.predictor.decode_codes(codes.to(device), moved))


def write_pipeline(
    folder: Path,
    predictor: QuantizedDiffusionPredictor,
    config: dict[str, Any],
    autoencoder: VideoAutoencoder,
    settings: GenerationSettings,
    fps: int,
) -> None:
    """Write what `QuantizedVideoPipeline.from_pretrained` reads into ``folder``; weights are not rounded."""
    for part in ("predictor", "autoencoder"):
        (folder / part).mkdir(exist_ok=True)
    write_predictor(folder / "predictor", config, predictor.state_dict())
    autoencoder.save(folder / "autoencoder")
    libraries = [*LIBRARIES]
    libraries += ["torchao"] if settings.weights != "full" else []
    libraries += ["transformers"] if predictor.config.text is not None else []
    libraries += ["diffusers"] if isinstance(autoencoder, DiffusersAutoencoder) else []
    sampling = {field.name: plain(getattr(settings, field.name)) for field in fields(GenerationSettings)}
    description = {"format": FORMAT, "fps": fps, "libraries": libraries, "sampling": sampling}
    write_json(folder / "pipeline.json", description)
