"""Backward simulation: the student is trained on the inputs that it will meet when it samples."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.settings import DmdSettings
from qdm_pipeline.models.predictor import Condition, Prediction, QuantizedDiffusionPredictor


class Answer(NamedTuple):
    """What the student says at one of its steps."""

    prediction: Prediction
    features: Tensor  # [B, T, H, W, E], what the prediction was read from


class Rollout(nn.Module):
    """The first steps of few-step sampling, with a gradient through the last of them only.

    (Yin et al. 2024, DMD2, arXiv:2405.14867, section 4.5.) Memory for backward is that of one step.
    """

    def __init__(
        self, student: QuantizedDiffusionPredictor, schedule: Schedule, settings: DmdSettings
    ) -> None:
        super().__init__()
        self.student, self.schedule, self.settings = student, schedule, settings

    def forward(
        self,
        noise: Tensor,
        condition: Condition,
        last: int,
        real: Tensor | None = None,
        simulated: bool = True,
    ) -> Answer:
        """Answer after steps 0 … ``last`` for noise [S, B, C, T, H, W], one draw for each of the S times.

        With ``real`` latents nothing is simulated: the step's input is ``real``, noised to its time. Nor
        is it where not ``simulated``: the input is then ``noise[0]`` itself.
        """
        times, x = self.settings.times, noise[0]
        if real is not None:
            x = self.schedule.add_noise(real, x, self._time(x, times[last]))
        for index in range(last if real is None and simulated else 0):
            with torch.no_grad():
                t = self._time(x, times[index])
                x0 = self._answer(x, t, condition).prediction.x0
                if self.settings.renoising == "kept":
                    again = self.schedule.epsilon(x, x0, t).to(x.dtype)
                else:
                    again = noise[index + 1]
                x = self.schedule.add_noise(x0, again, self._time(x, times[index + 1]))
        return self._answer(x, self._time(x, times[last]), condition)

    @staticmethod
    def _time(x: Tensor, time: float) -> Tensor:
        return x.new_full((len(x),), time)

    def _answer(self, x: Tensor, t: Tensor, condition: Condition) -> Answer:
        features = self.student.features(x, t, condition).float()
        collect = self.settings.codebook == "ema" and torch.is_grad_enabled()
        path, temperature = self.settings.path, self.settings.temperature
        return Answer(self.student.read(features, path, collect, temperature), features)
