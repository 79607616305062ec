import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.dmd import Draw, QuantizedDiffusionDMD
from qdm_pipeline.distillation.settings import DmdSettings
from qdm_pipeline.models.predictor import (
    Condition,
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
)
from qdm_pipeline.models.quantizer import QuantizerSettings

SHAPE = (2, 3, 1, 2, 2)
GAN = dict(student_weight=0.0, critic_weight=0.01, width=8, r1_weight=0.0, r1_deviation=0.1)
DMD = dict(
    times=[1.0, 0.5], path="quantized", renoising="fresh", inputs="simulated", codebook="still",
    matching="latents", temperature=0.5, guidance=1.5, guidance_rescale=0.5, normalise=True, low=0.02,
    high=0.98, shift=1.0, weight_limit=20.0, denoising_weight=0.0, regression_weight=0.0, gan=GAN,
)  # fmt: skip


@pytest.fixture
def dmd_settings():
    return lambda gan=None, **changes: build(DmdSettings, DMD | {"gan": GAN | (gan or {})} | changes)


@pytest.fixture
def predictor():
    quantizer = QuantizerSettings(
        kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.1
    )
    size = PredictorSettings(
        width=16, depth=1, heads=2, patch=(1, 1, 1), attention="full", embedding_dim=8, residual_dim=0,
        quantizer=quantizer,
    )  # fmt: skip
    torch.manual_seed(0)
    model = QuantizedDiffusionPredictor(
        PredictorConfig(size=size, latent_channels=3, classes=("a", "b"), vocabulary=(), caption_length=0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def make(predictor, dmd_settings):
    return lambda gan=None, **changes: QuantizedDiffusionDMD(
        predictor, Schedule("flow"), dmd_settings(gan, **changes)
    )


@pytest.fixture
def draw():
    def make(last, seed=0):
        normal = torch.Generator().manual_seed(seed)
        noise, renoise, real = (torch.randn(*n, *SHAPE, generator=normal) for n in ((last + 1,), (3,), ()))
        condition = Condition(torch.tensor([0, 1]))
        return Draw(noise, last, torch.tensor([0.3, 0.7]), renoise, condition, real)

    return make
