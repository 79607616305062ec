import pytest
import torch

from qdm_pipeline.distillation.losses import matching_gradient, matching_loss


def test_gradient_is_its_definition_in_float64():
    sample, fake, real = (torch.randn(3, 2, 4, dtype=torch.float64) for _ in range(3))
    scale = (sample - real).abs().mean(dim=(1, 2), keepdim=True)
    assert torch.allclose(matching_gradient(sample, fake, real).double(), (fake - real) / scale, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_hands_the_sample_its_gradient(dtype):
    sample = torch.randn(4, 8).to(dtype).requires_grad_()
    gradient = 1e-3 * torch.randn(4, 8)
    sample32 = sample.float()
    sample32.retain_grad()
    matching_loss(sample32, gradient).backward()
    # x - (x - g) is g up to the rounding of float32 at the size of x
    assert torch.allclose(sample32.grad * 32, gradient, atol=3e-7)


def test_small_differences_survive():
    real = torch.full((1, 1000), 1.0)
    fake = real + 1e-6 * torch.randn(1, 1000)
    gradient = matching_gradient(real + 0.5, fake, real)
    assert torch.allclose(gradient.double(), (fake.double() - real.double()) / 0.5, rtol=1e-6)
