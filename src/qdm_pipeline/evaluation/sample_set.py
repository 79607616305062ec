"""A finished set of samples, as its job left it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json
from qdm_pipeline.models.codebook_use import usage_histogram

METADATA = ("name", "nfe", "guidance", "steps", "seconds_per_clip", "codebook_size", "classes")


class SampleSet:
    """N samples: latents [N, C, T, H, W], codes [N, G, T, H, W], labels [N] (-1: nothing was asked for)."""

    def __init__(self, directory: Path) -> None:
        """Read ``directory``; `InputError` if it is unfinished, damaged, or not finite."""
        self.metadata: dict[str, Any] = read_json(directory / "done.json")["metadata"]
        if missing := [key for key in METADATA if key not in self.metadata]:
            raise InputError(f"{directory / 'done.json'}: metadata lacks {', '.join(missing)}")
        file = directory / "samples.safetensors"
        try:
            tensors = load_file(file)
            self.latents, self.codes, self.labels = (tensors[name] for name in ("latents", "codes", "labels"))
        except (FileNotFoundError, SafetensorError, KeyError) as error:
            raise InputError(f"{file}: missing or damaged ({error}); sample again") from None
        self.directory = directory
        self.name: str = self.metadata["name"]
        if not self.latents.isfinite().all():
            raise InputError(f"{file}: the latents of {self.name} are not finite; its model has diverged")

    def check(self, latent_shape: tuple[int, ...], classes: tuple[str, ...], least: int) -> None:
        """`InputError` unless at least ``least`` samples fit these latents and the classifier's classes."""
        if len(self.latents) < least:
            raise InputError(f"{self.directory}: {len(self.latents)} samples are too few, {least} are needed")
        if tuple(self.latents.shape[1:]) != latent_shape:
            raise InputError(
                f"{self.directory}: latents of {self.name} have shape {tuple(self.latents.shape[1:])}, "
                f"those of the clips {latent_shape}"
            )
        asked = tuple(self.metadata["classes"])
        if classes and asked and classes != asked:
            raise InputError(
                f"{self.directory}: {self.name} was asked for the classes {list(asked)}, "
                f"the classifier knows {list(classes)}"
            )

    @cached_property
    def usage(self) -> Tensor:
        """How often each code was used: int64 [G, K]."""
        return usage_histogram(self.codes, self.metadata["codebook_size"])


def latent_moments(latents: Tensor) -> dict[str, float]:
    """Mean and standard deviation over everything."""
    deviation, mean = torch.std_mean(latents.double())
    return {"latent_mean": float(mean), "latent_std": float(deviation)}
