import pytest
import torch

from qdm_pipeline.distillation.losses import (
    code_gradient,
    code_loss,
    discriminator_loss,
    generator_loss,
    matching_gradient,
    matching_loss,
)


def test_gradient_is_its_definition_in_float64():
    sample, fake, real = (torch.randn(3, 2, 4, dtype=torch.float64) for _ in range(3))
    scale = (sample - real).abs().mean(dim=(1, 2), keepdim=True)
    assert torch.allclose(matching_gradient(sample, fake, real).double(), (fake - real) / scale, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_hands_the_sample_its_gradient(dtype):
    sample, fake, real = (torch.randn(4, 8).to(dtype) for _ in range(3))
    fake = (real.float() + 1e-3 * fake.float()).to(dtype)  # as near as at the start of a distillation
    answer = sample.clone().float().requires_grad_()
    gradient = matching_gradient(sample, fake, real)
    loss = matching_loss(answer, gradient)
    loss.backward()
    normaliser = (sample.double() - real.double()).abs().mean(1, keepdim=True)
    expected = (fake.double() - real.double()) / normaliser / 32
    assert torch.allclose(answer.grad.double(), expected, rtol=1e-6, atol=0)
    assert float(loss.detach()) == pytest.approx(float(0.5 * (32 * expected).square().mean()), rel=1e-5)


def test_small_differences_survive():
    real = torch.full((1, 1000), 1.0)
    fake = real + 1e-6 * torch.randn(1, 1000)
    gradient = matching_gradient(real + 0.5, fake, real)
    assert torch.allclose(gradient.double(), (fake.double() - real.double()) / 0.5, rtol=1e-6)


def test_code_gradients_are_those_of_exhaustive_sums():
    # Two tokens of four codes: the divergences of the joint choice among all 16 sequences.
    fake, real = torch.randn(2, 2, 4, dtype=torch.float64)
    fake, real = fake.detach().requires_grad_(), real.detach()

    def joint(logits):
        p = logits.softmax(-1)
        return torch.stack([p[0, a] * p[1, b] for a in range(4) for b in range(4)])

    def divergence(p, q):
        return (p * (p / q).log()).sum()

    forward, reverse = divergence(joint(real), joint(fake)), divergence(joint(fake), joint(real))
    exact = {"forward_kl": forward, "reverse_kl": reverse, "jeffreys": (forward + reverse) / 2}
    for name, value in exact.items():
        (expected,) = torch.autograd.grad(value, fake, retain_graph=True)
        assert torch.allclose(code_gradient(fake.detach(), real, name), expected, atol=1e-12)
    logits = torch.randn(2, 4, requires_grad=True)
    code_loss(logits, expected).backward()
    assert torch.allclose(logits.grad.double(), expected / 2, atol=1e-7)  # two choices


def test_adversarial_losses_are_cross_entropies():
    real, made = torch.randn(2, 5, 3)
    ones, zeros = torch.ones(5, 3), torch.zeros(5, 3)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, ones) + entropy(made, zeros)
    assert torch.allclose(discriminator_loss(real, made), expected)
    assert torch.allclose(generator_loss(made), entropy(made, ones))
