"""Distillation where the right answer is known."""

import pytest
import torch
from torch import nn

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.losses import matching_gradient, matching_loss

FLOW = Schedule("flow")


def one_normaliser(sample, fake, real):
    """One normaliser for the batch: a sample's own would weight samples by where they fell."""
    return matching_gradient(sample.T, fake.T, real.T).T


class Affine(nn.Module):
    """A one-number student x = mean + deviation z."""

    def __init__(self):
        super().__init__()
        self.mean, self.deviation = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(1.0))


def test_a_gaussian_student_finds_the_teacher_when_both_scores_are_exact():
    student, draw = Affine(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), 0.02, (0.0, 0.99))

    def posterior_mean(x_t, t, mean, deviation):
        alpha, sigma = FLOW.coefficients(t, x_t)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    for step in range(1200):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 1200)
        x = student.mean + student.deviation * torch.randn(1024, 1, generator=draw)
        t = FLOW.draw_times(1024, 0.02, 0.98, draw)
        with torch.no_grad():
            x_t = FLOW.add_noise(x, torch.randn(x.shape, generator=draw), t)
            fake = posterior_mean(x_t, t, float(student.mean), float(student.deviation))
            real = posterior_mean(x_t, t, 2.0, 0.5)
            gradient = one_normaliser(x, fake, real)
        optimizer.zero_grad()
        matching_loss(x, gradient).backward()
        optimizer.step()
    assert float(student.mean.detach()) == pytest.approx(2.0, abs=0.01)
    assert float(student.deviation.detach()) == pytest.approx(0.5, abs=0.01)


MASSES, MEANS, DEVIATION = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.5, 1.5]).double(), 0.4


def mixture_mean(x_t, t):
    """E[x0 | x_t] for two normal modes."""
    alpha, sigma = FLOW.coefficients(t, x_t)
    variance = alpha**2 * DEVIATION**2 + sigma**2
    distance = x_t.double() - alpha * MEANS
    weights = (MASSES.log() - distance**2 / (2 * variance)).softmax(1)
    return (weights * (MEANS + alpha * DEVIATION**2 / variance * distance)).sum(1, keepdim=True)


def network(inputs):
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
    )  # fmt: skip


def descend(optimizer, loss, rate):
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("seed", range(5))
def test_a_student_with_a_trained_critic_keeps_both_modes(seed):
    torch.manual_seed(seed)
    draw, steps, batch = torch.Generator().manual_seed(seed), 300, 256
    student, fake = network(1), network(2)
    student_optimizer, fake_optimizer = (
        torch.optim.Adam(net.parameters(), betas=(0.0, 0.99)) for net in (student, fake)
    )

    def normal():
        return torch.randn(batch, 1, generator=draw)

    for _ in range(150):  # a broad start that knows nothing of modes
        z = normal()
        descend(student_optimizer, (student(z) - 2 * z).square().mean(), 2e-3)
    for step in range(steps):
        left = 1 - step / steps
        for _ in range(5):
            x, t = student(normal()).detach(), FLOW.draw_times(batch, 0.002, 1.0, draw)
            x_t = FLOW.add_noise(x, normal(), t)
            error = (fake(torch.cat([x_t, t[:, None]], 1)) - x).square().mean(1)
            descend(fake_optimizer, (FLOW.velocity_weight(t, 20.0) * error).mean(), 4e-3 * left)
        x, t = student(normal()), FLOW.draw_times(batch, 0.02, 0.98, draw)
        with torch.no_grad():
            x_t = FLOW.add_noise(x, normal(), t)
            gradient = one_normaliser(x, fake(torch.cat([x_t, t[:, None]], 1)), mixture_mean(x_t, t))
        descend(student_optimizer, matching_loss(x, gradient), 2e-3 * left)
    with torch.no_grad():
        x = student(torch.randn(20_000, 1, generator=draw))
    assert float((x < 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(x[x < 0].mean()) < -1 and float(x[x > 0].mean()) > 1
    assert (
        float((x.abs() < 0.5).float().mean()) < 0.25
    )  # a broad start has .2 there, one mode in the middle all
