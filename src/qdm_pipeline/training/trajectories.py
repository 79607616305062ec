"""Trajectories of a teacher's ODE, kept at the times of the student's steps, for what is learnt from them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.settings import Renoising
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import Condition
from qdm_pipeline.training.conditions import of_samples


class Trajectories:
    """What a student is to answer at each of its steps so that it goes where its teacher goes.

    Where the student keeps its noise (``renoising: kept``), that is the x0 with which one step of DDIM
    covers the teacher's many (`Schedule.x0_between`); where it takes fresh noise, the teacher's sample.
    """

    def __init__(
        self, directory: Path, times: Sequence[float], renoising: Renoising, schedule: Schedule
    ) -> None:
        """`InputError` if the samples in ``directory`` were not kept at the student's times."""
        tensors = load_file(directory / "samples.safetensors")
        steps = len(times)
        found = tensors["trajectory"].shape[1] if "trajectory" in tensors else 0
        if found != steps:
            raise InputError(
                f"{directory}: samples kept at {found} times, but the student has {steps} steps; sample the "
                f"teacher with keep: {list(times)}"
            )
        self.inputs, sample = tensors["trajectory"], tensors["latents"]
        self.times = torch.tensor(times)
        self.targets = sample[:, None].expand_as(self.inputs)
        if renoising == "kept":
            self.targets = self._targets(sample, schedule)
        self.condition = of_samples(tensors)

    def _targets(self, sample: Tensor, schedule: Schedule) -> Tensor:
        after = [*self.inputs.unbind(1)[1:], sample]
        times = [*self.times.tolist(), 0.0]
        ones = torch.ones(len(sample))
        return torch.stack(
            [
                schedule.x0_between(x_t, times[k] * ones, x_s, times[k + 1] * ones).float()
                for k, (x_t, x_s) in enumerate(zip(self.inputs.unbind(1), after, strict=True))
            ],
            1,
        )

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, rows: Tensor, step: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor, Condition]:
        """Inputs and targets [B, C, T, H, W] of ``rows`` [B] at a step (or one each, [B]); the condition."""
        step = torch.as_tensor(step).expand(len(rows))
        return (
            self.inputs[rows, step].to(device),
            self.targets[rows, step].to(device),
            self.condition.rows(rows).to(device),
        )
