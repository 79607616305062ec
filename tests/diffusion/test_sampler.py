import diffusers
import pytest
import torch

from qdm_pipeline.diffusion.guidance import guide, rescale
from qdm_pipeline.diffusion.sampler import ddim, dpm_solver, renoise
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


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver, 2)])
@pytest.mark.parametrize("name", ["flow", "cosine", "linear"])
def test_solvers_reach_their_order(name, sampler, order):
    # The flow keeps z fixed in x_t = alpha mean + sqrt(alpha^2 deviation^2 + sigma^2) z.
    schedule, z = Schedule(name), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    denoise = gaussian_denoiser(schedule)

    def place(time):
        t = torch.full((len(z),), time, dtype=torch.float64)
        alpha, sigma = schedule.coefficients(t, z)
        return alpha * MEAN + (alpha**2 * DEVIATION**2 + sigma**2).sqrt() * z, t

    def error(steps):
        times = torch.linspace(0.9, 0.1, steps, dtype=torch.float64).tolist()
        sample = sampler(denoise, place(0.9)[0], times, schedule, torch.Generator())
        return float((sample - denoise(*place(0.1))).abs().max())

    assert error(101) / error(201) == pytest.approx(2**order, rel=0.1)
    assert error(201) < (5e-3 if order == 1 else 1e-4)


def test_dpm_solver_starts_from_pure_noise():
    schedule, noise = Schedule("flow"), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    sample = dpm_solver(gaussian_denoiser(schedule), noise, schedule.spaced(200), schedule, torch.Generator())
    assert float((sample - MEAN - DEVIATION * noise).abs().max()) < 1e-3


class Betas(Schedule):
    """The discrete schedule of diffusers: t = 0, 1/N, ... stands for its step N t."""

    def __init__(self, cumulative):
        super().__init__("cosine")
        object.__setattr__(self, "cumulative", cumulative.double())

    def coefficients(self, t, like):
        index = (t.double() * len(self.cumulative)).round().long()
        kept = self.cumulative[index].view(-1, *(1,) * (like.dim() - 1))
        return kept.sqrt(), (1 - kept).sqrt()


@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
def test_every_step_is_that_of_diffusers(sampler, betas):
    common = {"num_train_timesteps": 1000, "beta_schedule": betas, "prediction_type": "sample"}
    if sampler == "ddim":
        peer = diffusers.DDIMScheduler(**common, clip_sample=False, timestep_spacing="trailing")
    else:
        peer = diffusers.DPMSolverMultistepScheduler(
            **common, timestep_spacing="trailing", lower_order_final=False, final_sigmas_type="zero"
        )
    peer.set_timesteps(20)
    schedule = Betas(peer.alphas_cumprod)

    def model(x, t):
        return torch.tanh(x) * (1 - t.view(-1, 1) / 2)

    noise = torch.linspace(-2, 2, 24, dtype=torch.float64).view(2, 12)
    ours, theirs, x = [], [], noise
    times = [float(step) / 1000 for step in peer.timesteps]

    def watched(x, t):
        ours.append(x)
        return model(x, t)

    act = {"ddim": ddim, "dpm_solver": dpm_solver}[sampler]
    act(watched, noise, times, schedule, torch.Generator())
    for step in peer.timesteps:
        theirs.append(x)
        x = peer.step(
            model(x, torch.full((2,), float(step) / 1000, dtype=torch.float64)), step, x
        ).prev_sample
    assert len(ours) == 20
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) < (1e-6 if sampler == "ddim" else 2e-4)
