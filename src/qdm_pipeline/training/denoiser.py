"""A predictor as a sampler wants it."""

from torch import Tensor

from qdm_pipeline.diffusion.guidance import guide
from qdm_pipeline.models.predictor import Condition, Path, QuantizedDiffusionPredictor


class GuidedDenoiser:
    """A predictor, its condition and guidance: (x_t, t) -> x0.

    Guidance acts on the features, which are then read through ``path``. On the continuous path that is
    ordinary guidance of x0, since the projection behind the features is affine.
    """

    def __init__(
        self, model: QuantizedDiffusionPredictor, condition: Condition, guidance: float, path: Path
    ) -> None:
        self.model, self.condition, self.guidance, self.path = model, condition, guidance, path
        self.features: Tensor | None = None  # of the last call

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided prediction of x0."""
        features = self.model.features(x_t, t, self.condition).float()
        if self.guidance != 1:
            free = self.model.features(x_t, t, self.condition.unconditional()).float()
            features = guide(free, features, self.guidance)
        self.features = features
        return self.model.read(features, self.path).x0

    def codes(self) -> Tensor:
        """Token ids [B, G, T, H, W] of the last call."""
        assert self.features is not None
        codes = self.model.read(self.features, "quantized").codes
        assert codes is not None
        return codes
