"""Noise schedules: t = 0 is clean, t = 1 is noise, x_t = alpha(t) x0 + sigma(t) epsilon."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Curve = Callable[[Tensor], tuple[Tensor, Tensor]]
Density = Literal["uniform", "logit-normal"]


def _flow(t: Tensor) -> tuple[Tensor, Tensor]:
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003)."""
    return 1 - t, t


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    """Variance preserving, angle linear in t (Nichol & Dhariwal 2021, arXiv:2102.09672, without offset)."""
    return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


def _linear(t: Tensor) -> tuple[Tensor, Tensor]:
    """Variance preserving with beta linear from 0.1 to 20 (Song et al. 2021, arXiv:2011.13456, eq. 33)."""
    log_alpha = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
    return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


CURVES: dict[str, Curve] = {"linear": _linear, "cosine": _cosine, "flow": _flow}


@dataclass(frozen=True)
class Schedule:
    """One noise schedule, the same object for training and sampling.

    ``shift`` moves times towards noise, t -> s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206,
    eq. 23); 1 leaves them. Raises `ValueError` for an unknown name.
    """

    name: str
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in CURVES:
            raise ValueError(f"schedule: found {self.name!r}, allowed are {sorted(CURVES)}")
        if self.shift <= 0:
            raise ValueError(f"shift: found {self.shift}, must be above 0")

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma for times [B] in float64, shaped to multiply ``like`` [B, ...]."""
        alpha, sigma = CURVES[self.name](t.double())
        shape = (-1,) + (1,) * (like.dim() - 1)
        return alpha.view(shape), sigma.view(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, ...] for clean x0, standard normal noise and times [B]; computed in float64."""
        alpha, sigma = self.coefficients(t, x0)
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def epsilon(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise that explains x_t given x0, in float64; sigma(t) must not be 0."""
        alpha, sigma = self.coefficients(t, x_t)
        return (x_t.double() - alpha * x0.double()) / sigma

    def velocity(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """epsilon - x0 for flow, else alpha epsilon - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512)."""
        alpha, sigma = self.coefficients(t, x_t)
        epsilon = self.epsilon(x_t, x0, t)
        if self.name == "flow":
            return epsilon - x0.double()
        return alpha * epsilon - sigma * x0.double()

    def x0_from_epsilon(self, x_t: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Inverse of `epsilon`, in float64; alpha(t) must not be 0."""
        alpha, sigma = self.coefficients(t, x_t)
        return (x_t.double() - sigma * epsilon.double()) / alpha

    def x0_from_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """Inverse of `velocity`, in float64, at every t."""
        alpha, sigma = self.coefficients(t, x_t)
        if self.name == "flow":
            return x_t.double() - sigma * velocity.double()
        return alpha * x_t.double() - sigma * velocity.double()

    def velocity_weight(self, t: Tensor, limit: float) -> Tensor:
        """min(1 / sigma(t)^2, limit) [B]: turns a squared error in x0 into one in velocity."""
        _, sigma = self.coefficients(t, t)
        return (1 / sigma**2).clamp(max=limit).float()

    def warp(self, t: Tensor) -> Tensor:
        """Apply the shift to times."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def x0_between(self, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
        """The prediction of x0 at x_t with which one step of DDIM from t to s < t ends at x_s; float64.

        (Salimans & Ho 2022, arXiv:2202.00512, appendix G: what a student of half the steps is taught.)
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.coefficients(t, x_t), self.coefficients(s, x_t)
        ratio = sigma_s / sigma_t
        return (x_s.double() - ratio * x_t.double()) / (alpha_s - ratio * alpha_t)

    def draw_times(
        self, count: int, low: float, high: float, generator: torch.Generator, density: Density = "uniform"
    ) -> Tensor:
        """Training times [count] in [low, high], then shifted; on the generator's device.

        ``logit-normal``: the sigmoid of a standard normal, which favours the middle (Esser et al. 2024,
        arXiv:2403.03206, section 3.1).
        """
        if density == "uniform":
            fraction = torch.rand(count, generator=generator, device=generator.device)
        else:
            fraction = torch.randn(count, generator=generator, device=generator.device).sigmoid()
        return self.warp(low + (high - low) * fraction)

    def spaced(self, steps: int, low: float = 0.0, high: float = 1.0) -> tuple[float, ...]:
        """``steps`` times that fall evenly from ``high`` towards ``low`` (not reached), then shifted."""
        if steps < 1:
            raise ValueError(f"steps: found {steps}, must be at least 1")
        fractions = torch.arange(steps, dtype=torch.float64) / steps
        return tuple(self.warp(high - (high - low) * fractions).tolist())
