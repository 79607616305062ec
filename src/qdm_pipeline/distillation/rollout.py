"""Backward simulation: the student is trained on the inputs that it will meet when it samples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.models.predictor import Condition, Path, Prediction, QuantizedDiffusionPredictor


class Rollout(nn.Module):
    """The first steps of few-step sampling, with a gradient through the last of them only.

    (Yin et al. 2024, DMD2, arXiv:2405.14867, section 4.5.) Memory for backward is that of one step.
    """

    def __init__(
        self, student: QuantizedDiffusionPredictor, schedule: Schedule, times: Sequence[float], path: Path
    ) -> None:
        super().__init__()
        self.student = student
        self.schedule = schedule
        self.times = tuple(times)
        self.path = path

    def forward(self, noise: Tensor, condition: Condition, last: int) -> Prediction:
        """Answer after steps 0 … ``last`` for noise [S, B, C, T, H, W], one draw for each of the S times."""
        x = noise[0]
        for index in range(last):
            with torch.no_grad():
                x0 = self._answer(x, self.times[index], condition).x0
                t = x.new_full((len(x),), self.times[index + 1])
                x = self.schedule.add_noise(x0, noise[index + 1], t)
        return self._answer(x, self.times[last], condition)

    def _answer(self, x: Tensor, time: float, condition: Condition) -> Prediction:
        features = self.student.features(x, x.new_full((len(x),), time), condition).float()
        return self.student.read(features, self.path)
