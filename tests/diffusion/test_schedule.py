import math

import pytest
import torch

from qdm_pipeline.diffusion.schedule import CURVES, Schedule


@pytest.mark.parametrize("name", sorted(CURVES))
def test_ends_are_clean_and_noise(name):
    schedule = Schedule(name)
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(schedule.add_noise(x0, noise, torch.zeros(2)), x0)
    alpha, sigma = schedule.coefficients(torch.ones(2), x0)
    assert alpha.max() < 0.01 and sigma.min() > 0.9999


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_variance_is_preserved(name):
    alpha, sigma = Schedule(name).coefficients(torch.linspace(0, 1, 50), torch.zeros(50))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(50, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", sorted(CURVES))
def test_conversions_round_trip(name):
    schedule, t = Schedule(name), torch.linspace(0.02, 0.98, 20)
    x0, noise = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    x_t = schedule.add_noise(x0, noise, t)
    assert torch.allclose(schedule.epsilon(x_t, x0, t), noise, atol=1e-9)
    assert torch.allclose(schedule.x0_from_epsilon(x_t, noise, t), x0, atol=1e-9)
    velocity = schedule.velocity(x_t, x0, t)
    assert torch.allclose(schedule.x0_from_velocity(x_t, velocity, t), x0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(CURVES))
def test_weight_turns_x0_error_into_velocity_error(name):
    schedule, t = Schedule(name), torch.tensor([0.3, 0.6, 0.9])
    x0, noise, guess = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    x_t = schedule.add_noise(x0, noise, t)
    error = (schedule.velocity(x_t, x0, t) - schedule.velocity(x_t, guess, t)).square().mean(1)
    weighted = schedule.velocity_weight(t, limit=math.inf) * (x0 - guess).square().mean(1)
    assert torch.allclose(error, weighted.double(), rtol=1e-5)


def test_velocity_of_flow_is_the_derivative_of_the_path():
    schedule, step = Schedule("flow"), 1e-3
    x0, noise, t = torch.randn(1, 6).double(), torch.randn(1, 6).double(), torch.tensor([0.4])
    derivative = (schedule.add_noise(x0, noise, t + step) - schedule.add_noise(x0, noise, t - step)) / (
        2 * step
    )
    velocity = schedule.velocity(schedule.add_noise(x0, noise, t), x0, t)
    assert torch.allclose(velocity, derivative, atol=1e-3)


def test_spaced_times_fall_and_shift_moves_them_towards_noise():
    assert Schedule("flow").spaced(4) == (1.0, 0.75, 0.5, 0.25)
    assert Schedule("flow").spaced(2, low=0.2, high=0.8) == pytest.approx((0.8, 0.5))
    assert Schedule("flow", shift=3.0).spaced(4)[2] == pytest.approx(0.75)


def test_drawn_times_stay_in_range_and_repeat():
    draw = [Schedule("flow").draw_times(100, 0.1, 0.4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draw) and draw[0].min() >= 0.1 and draw[0].max() <= 0.4


@pytest.mark.parametrize("arguments", [("quadratic",), ("flow", 0.0)])
def test_wrong_settings_are_named(arguments):
    with pytest.raises(ValueError, match="schedule|shift"):
        Schedule(*arguments)


def test_logit_normal_times_favour_the_middle():
    draw = torch.Generator().manual_seed(0)
    times = Schedule("flow").draw_times(20_000, 0.2, 0.8, draw, "logit-normal")
    assert 0.2 <= times.min() and times.max() <= 0.8
    inner = ((times - 0.5).abs() < 0.15).double().mean()
    expected = 2 * torch.special.ndtr(torch.tensor(math.log(3.0))) - 1  # |sigmoid(z) - 1/2| < 1/4
    assert float(inner) == pytest.approx(float(expected), abs=0.01)
