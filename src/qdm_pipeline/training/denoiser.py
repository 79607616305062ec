"""A predictor as a sampler wants it."""

import torch
from torch import Tensor

from qdm_pipeline.diffusion.guidance import guide
from qdm_pipeline.models.predictor import Condition, Path, QuantizedDiffusionPredictor


class GuidedDenoiser:
    """A predictor, its condition and guidance: (x_t, t) -> x0.

    Guidance acts on the features, which are then read through ``path``. On the continuous path that is
    ordinary guidance of x0, since the projection behind the features is affine.
    """

    def __init__(
        self,
        model: QuantizedDiffusionPredictor,
        condition: Condition,
        guidance: float,
        path: Path,
        at_once: int | None = None,
    ) -> None:
        """``at_once`` is how many samples the network sees in one pass; None: all."""
        self.model, self.condition, self.guidance, self.path = model, condition, guidance, path
        self.at_once = at_once
        self.features: Tensor | None = None  # of the last call

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided prediction of x0."""
        features = self._features(x_t, t, self.condition)
        if self.guidance != 1:
            free = self._features(x_t, t, self.condition.unconditional())
            features = guide(free, features, self.guidance)
        self.features = features
        return self.model.read(features, self.path).x0

    def _features(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        parts = torch.arange(len(x_t), device=x_t.device).split(self.at_once or len(x_t))
        return torch.cat([self.model.features(x_t[i], t[i], condition.rows(i)).float() for i in parts])

    def tokens(self) -> dict[str, Tensor]:
        """What the quantized path says of the last call, on the CPU.

        ``codes`` int32 [B, G, T, H, W] and, where the model keeps one, ``residual`` [B, R, T, H, W].
        """
        assert self.features is not None
        prediction = self.model.read(self.features, "quantized")
        assert prediction.codes is not None
        tokens = {"codes": prediction.codes.int().cpu()}
        if prediction.residual is not None:
            tokens["residual"] = prediction.residual.cpu()
        return tokens
