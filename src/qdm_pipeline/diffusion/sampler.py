"""Samplers over any denoiser: (x_t [B, ...], t [B]) -> prediction of x0 [B, ...]."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qdm_pipeline.diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Denoiser, Tensor, Sequence[float], Schedule, torch.Generator], Tensor]


def _standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(
        like.device
    )


def ddim(
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[float],
    schedule: Schedule,
    generator: torch.Generator,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16): x0 [B, ...] after one call per time.

    ``times`` fall from about 1; after the last one the prediction itself is the sample. ``eta`` = 0 is
    deterministic, 1 adds the noise of ancestral sampling; ``generator`` is read only if ``eta`` > 0.
    """
    x = noise
    for index, time in enumerate(times):
        t = x.new_full((len(x),), time)
        x0 = denoiser(x, t)
        if index + 1 == len(times):
            return x0
        s = x.new_full((len(x),), times[index + 1])
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t, x), schedule.coefficients(s, x)
        epsilon = schedule.epsilon(x, x0, t)
        # eq. 16 for any alpha and sigma: the deviation of x_s given x_t and x0, times eta
        spread = eta * sigma_s * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).clamp(min=0).sqrt()
        moved = alpha_s * x0.double() + (sigma_s**2 - spread**2).clamp(min=0).sqrt() * epsilon
        if eta > 0:
            moved = moved + spread * _standard_normal(x, generator).double()
        x = moved.to(x.dtype)
    raise ValueError("times: found none, at least one is needed")


def dpm_solver(
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[float],
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """DPM-Solver++(2M): second order with one call per time (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    Deterministic; arguments and result as in `ddim`, which it is with the x0 of each step extrapolated from
    the last two in half the logarithm of the signal-to-noise ratio. First order where that is infinite.
    """
    x, before, last = noise, None, 0.0  # last: width of the step before
    for index, time in enumerate(times):
        t = x.new_full((len(x),), time)
        x0 = denoiser(x, t)
        if index + 1 == len(times):
            return x0
        s = x.new_full((len(x),), times[index + 1])
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t, x), schedule.coefficients(s, x)
        ratio = float((alpha_t * sigma_s / (alpha_s * sigma_t)).flatten()[0])
        width = -math.log(ratio) if ratio > 0 else math.inf  # of this step, in half the log-SNR
        answer = direction = x0.double()
        if before is not None and math.isfinite(last):
            direction = answer + width / (2 * last) * (answer - before)
        before, last = answer, width
        x = (alpha_s * direction + sigma_s * schedule.epsilon(x, direction, t)).to(x.dtype)
    raise ValueError("times: found none, at least one is needed")


def renoise(
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[float],
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """Few-step sampling: predict x0, noise it afresh to the next time.

    (Song et al. 2023, arXiv:2303.01469, algorithm 1.)

    ``times`` is the student's step list, the one it was distilled on. Returns x0 [B, ...].
    """
    x = noise
    for index, time in enumerate(times):
        x0 = denoiser(x, x.new_full((len(x),), time))
        if index + 1 == len(times):
            return x0
        x = schedule.add_noise(x0, _standard_normal(x0, generator), x.new_full((len(x),), times[index + 1]))
    raise ValueError("times: found none, at least one is needed")
