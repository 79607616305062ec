"""A student that was never trained, but answers every class and every seed differently."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.models.predictor import PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.pipelines.sample.nodes import export_model
from qdm_pipeline.training.few_step import save_student
from qdm_pipeline.training.sampling import SamplingSettings
from qdm_pipeline.training.teacher import ScheduleSettings
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder

SETTINGS = dict(
    name="student", sampler=None, steps=None, times=None, low=0.0, high=1.0, eta=0.0, guidance=1.0,
    path=None, asked=None, size=None, count=10, batch=4, at_once=4, videos=3, columns=3, scale=1, fps=8,
    precision="fp32", weights="full", compile=False, keep=(), seed=0,
)  # fmt: skip
SCHEDULE = ScheduleSettings(name="flow", shift=1.0, low=0.0, high=1.0, density="uniform")
NOTHING = {"classes": (), "vocabulary": (), "caption_length": 0}
QUANTIZER = dict(kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.1)
SIZE = dict(
    width=64, depth=3, heads=2, patch=(1, 1, 1), attention="full", embedding_dim=8, residual_dim=0,
    quantizer=QUANTIZER,
)  # fmt: skip


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """The module with noise on all weights: as it was built, many of its parts would do nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


Export = Callable[..., Path]


@pytest.fixture
def models(tmp_path: Path) -> Callable[..., tuple[Handle, Handle]]:
    """Directories of a student (of a ``size``, asked for classes if nothing else) and its autoencoder."""

    def make(size: dict[str, object] | None = None, **asked: object) -> tuple[Handle, Handle]:
        config = build(
            PredictorConfig,
            {"size": SIZE | (size or {}), "latent_channels": 3}
            | NOTHING
            | (asked or {"classes": ("even", "odd")}),
        )
        torch.manual_seed(0)
        weights = perturbed(QuantizedDiffusionPredictor(config)).state_dict()
        made = {"latent_shape": [3, 1, 2, 2], "space": 8}
        save_student(tmp_path / "student", config, weights, SCHEDULE, made, (1.0, 0.5), "quantized", "fresh")
        sizes = AutoencoderConfig(
            channels=3, latent_channels=3, time_patch=4, space_patch=8, width=8, encoder_blocks=1,
            decoder_blocks=1,
        )  # fmt: skip
        (tmp_path / "autoencoder").mkdir(exist_ok=True)
        decoder = perturbed(CausalVideoAutoencoder(sizes))
        assert isinstance(decoder, CausalVideoAutoencoder)
        decoder.save(tmp_path / "autoencoder")
        return Handle("student", tmp_path / "student", "s"), Handle(
            "autoencoder", tmp_path / "autoencoder", "a"
        )

    return make


@pytest.fixture
def export(models: Callable[..., tuple[Handle, Handle]], tmp_path: Path) -> Export:
    """The directory of an exported student, with some settings changed."""

    def make(
        settings: dict[str, object] | None = None, size: dict[str, object] | None = None, **asked: object
    ) -> Path:
        how = build(SamplingSettings, SETTINGS | (settings or {}))
        return export_model(how, *models(size, **asked), tmp_path / "runs").path

    return make
