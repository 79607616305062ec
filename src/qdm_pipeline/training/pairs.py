"""Pairs of noise and what the teacher's ODE makes of it, for the regression loss of DMD."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import Condition
from qdm_pipeline.randomness import epoch_rows


class Pairs:
    """Samples of a teacher that were kept with their noise."""

    def __init__(self, directory: Path) -> None:
        """`InputError` if the samples in ``directory`` have no noise beside them."""
        tensors = load_file(directory / "samples.safetensors")
        if "noise" not in tensors:
            raise InputError(f"{directory}: samples without their noise; sample with keep_noise: true")
        self.noise, self.latents = tensors["noise"], tensors["latents"]
        labels = tensors["labels"] if bool((tensors["labels"] >= 0).any()) else None
        self.condition = Condition(labels, tensors.get("words"))

    def draw(
        self, first: int, count: int, seed: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Condition]:
        """Noise [count, C, T, H, W], samples of the same shape and their condition, for one forward pass."""
        rows = epoch_rows(len(self.noise), first, count, seed)
        return (
            self.noise[rows].to(device),
            self.latents[rows].to(device),
            self.condition.rows(rows).to(device),
        )
