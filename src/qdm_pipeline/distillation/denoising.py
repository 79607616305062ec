"""Denoising score matching for a predictor: trains the teacher, and the fake score after it."""

from typing import NamedTuple

from torch import Tensor, nn

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.models.predictor import Condition, QuantizedDiffusionPredictor


class DenoisingLoss(NamedTuple):
    """The loss to descend, and what explains it; losses are scalars."""

    total: Tensor
    continuous: Tensor
    quantized: Tensor | None
    commitment: Tensor | None
    codes: Tensor | None  # [B, G, T, H, W]


class Denoising(nn.Module):
    """L(continuous) + quantization_weight (L(quantized) + commitment_weight commitment).

    L is the squared error in x0 weighted by min(1 / sigma^2, weight_limit): away from t = 0 the error in
    velocity. With ``quantization_weight`` 0 the codebook is not searched and its parameters get no gradient.
    """

    def __init__(
        self,
        predictor: QuantizedDiffusionPredictor,
        schedule: Schedule,
        weight_limit: float,
        quantization_weight: float,
        commitment_weight: float,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.schedule = schedule
        self.weight_limit = weight_limit
        self.quantization_weight = quantization_weight
        self.commitment_weight = commitment_weight
        predictor.read_codes(quantization_weight > 0)

    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> DenoisingLoss:
        """Losses for clean latents x0 and noise [B, C, T, H, W] at times t [B]."""
        return self.losses(self.features(x0, noise, t, condition), x0, t)

    def features(self, x0: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What the predictor sees in noised latents: float32 [B, T, H, W, E]."""
        return self.predictor.features(self.schedule.add_noise(x0, noise, t), t, condition).float()

    def losses(self, features: Tensor, x0: Tensor, t: Tensor) -> DenoisingLoss:
        """Losses of the predictions read from ``features``."""
        weight = self.schedule.velocity_weight(t, self.weight_limit)

        def error(prediction: Tensor) -> Tensor:
            return (weight * (prediction - x0).square().flatten(1).mean(1)).mean()

        continuous = error(self.predictor.read(features, "continuous").x0)
        if self.quantization_weight == 0:
            return DenoisingLoss(continuous, continuous, None, None, None)
        prediction = self.predictor.read(features, "quantized", collect=True)
        quantized, commitment = error(prediction.x0), prediction.commitment
        assert commitment is not None
        total = continuous + self.quantization_weight * (quantized + self.commitment_weight * commitment)
        return DenoisingLoss(total, continuous, quantized, commitment, prediction.codes)
