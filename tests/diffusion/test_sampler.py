import pytest
import torch

from qdm_pipeline.diffusion.guidance import guide, rescale
from qdm_pipeline.diffusion.sampler import ddim, renoise
from qdm_pipeline.diffusion.schedule import Schedule

MEAN, DEVIATION = 0.7, 0.3


def gaussian_denoiser(schedule):
    """E[x0 | x_t] where x0 is normal with the mean and deviation above: the exact score."""

    def denoise(x, t):
        alpha, sigma = schedule.coefficients(t, x)
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return (MEAN + gain * (x.double() - alpha * MEAN)).to(x.dtype)

    return denoise


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_ddim_converges_to_the_exact_flow_at_first_order(name):
    # The probability flow carries z to mean + deviation z where alpha(1) = 0.
    schedule, noise = Schedule(name), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = MEAN + DEVIATION * noise

    def error(steps):
        sample = ddim(gaussian_denoiser(schedule), noise, schedule.spaced(steps), schedule, torch.Generator())
        return float((sample - exact).abs().max())

    assert error(400) < 5e-3
    assert error(100) / error(200) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("sampler", ["ancestral", "renoise"])
def test_stochastic_samplers_keep_mean_and_deviation(sampler):
    schedule, draw = Schedule("flow"), torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, generator=draw)
    times = schedule.spaced(400)
    if sampler == "ancestral":
        sample = ddim(gaussian_denoiser(schedule), noise, times, schedule, draw, eta=1.0)
        assert float(sample.std()) == pytest.approx(DEVIATION, abs=0.01)
    else:  # re-noising a posterior mean shrinks: only the mean is right with a denoiser instead of a student
        sample = renoise(gaussian_denoiser(schedule), noise, times[::100], schedule, draw)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.01)


def test_renoise_calls_the_denoiser_at_its_times_and_returns_its_last_answer():
    seen = []

    def denoise(x, t):
        seen.append(float(t[0]))
        return torch.full_like(x, len(seen))

    sample = renoise(denoise, torch.zeros(2, 3), (1.0, 0.5), Schedule("flow"), torch.Generator())
    assert seen == [1.0, 0.5] and sample.eq(2).all()


def test_ddim_golden_sum():
    schedule = Schedule("cosine")
    noise = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 12)
    sample = ddim(
        lambda x, t: torch.tanh(x) * (1 - t[:, None] / 2),
        noise,
        schedule.spaced(8),
        schedule,
        torch.Generator(),
    )
    assert float(sample.abs().sum()) == pytest.approx(9.33310184459848, abs=1e-12)


def test_guidance_formula():
    u, c = torch.tensor([1.0]), torch.tensor([3.0])
    assert guide(u, c, 0) == u and guide(u, c, 1) == c and guide(u, c, 1.5) == 4


def test_rescaling_gives_back_the_contrast_of_the_conditional():
    c, u = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    guided = guide(u, c, 4.0)
    deviations = [x.flatten(1).std(1) for x in (rescale(guided, c, 1.0), c, rescale(guided, c, 0.5), guided)]
    assert torch.allclose(deviations[0], deviations[1]) and torch.equal(rescale(guided, c, 0.0), guided)
    assert torch.allclose(deviations[2], (deviations[1] + deviations[3]) / 2)
