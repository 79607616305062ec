import pytest
import torch
from torch import nn

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.denoising import Denoising
from qdm_pipeline.distillation.dmd import QuantizedDiffusionDMD
from qdm_pipeline.distillation.losses import matching_gradient, matching_loss
from qdm_pipeline.distillation.rollout import Rollout
from qdm_pipeline.models.predictor import (
    Condition,
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
)
from qdm_pipeline.models.quantizer import QuantizerSettings

SHAPE = (2, 3, 1, 2, 2)


def predictor():
    quantizer = QuantizerSettings(
        kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.1
    )
    size = PredictorSettings(
        attention="full",
        residual_dim=0,
        width=16,
        depth=1,
        heads=2,
        patch=(1, 1, 1),
        embedding_dim=8,
        quantizer=quantizer,
    )
    torch.manual_seed(0)
    model = QuantizedDiffusionPredictor(
        PredictorConfig(size=size, latent_channels=3, classes=("a", "b"), vocabulary=(), caption_length=0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make(path="quantized", guidance=1.5):
    return QuantizedDiffusionDMD(predictor(), Schedule("flow"), (1.0, 0.5), path, guidance, 0.5, 20.0)


CONDITION = Condition(torch.tensor([0, 1]))


def draws(last):
    return torch.randn(last + 1, *SHAPE), last, torch.tensor([0.3, 0.7]), torch.randn(SHAPE), CONDITION


@pytest.mark.parametrize("last", [0, 1])
def test_student_loss_reaches_the_student_only(last):
    dmd = make()
    loss = dmd.student_loss(*draws(last))
    loss.total.backward()
    assert all(p.grad is not None for name, p in dmd.student.named_parameters())
    assert all(p.grad is None for role in (dmd.teacher, dmd.fake_score) for p in role.parameters())
    assert loss.prediction.codes is not None


def test_critic_loss_reaches_the_fake_score_only_and_no_codebook():
    dmd = make()
    before = dmd.student.quantizer.codebook.clone()
    dmd.critic_loss(*draws(1)).backward()
    assert all(p.grad is None for role in (dmd.teacher, dmd.student) for p in role.parameters())
    trained = [name for name, p in dmd.fake_score.named_parameters() if p.grad is not None]
    assert trained and not any(name.startswith("quantizer") for name in trained)
    dmd.student.quantizer.commit(0, 0)
    assert torch.equal(dmd.student.quantizer.codebook, before)


def test_at_the_start_scores_agree_and_without_guidance_there_is_no_gradient():
    loss = make(guidance=1.0).student_loss(*draws(0))
    assert float(loss.gap) < 1e-6 and float(loss.total.detach()) < 1e-9


def test_roles_are_independent_copies():
    dmd = make()
    with torch.no_grad():
        dmd.student.final_proj.bias.add_(1)
    assert not torch.equal(dmd.student.final_proj.bias, dmd.fake_score.final_proj.bias)
    assert torch.equal(dmd.teacher.final_proj.bias, dmd.fake_score.final_proj.bias)


def test_rollout_is_the_sampler_and_keeps_memory_of_one_step():
    model = predictor()
    rollout = Rollout(model, Schedule("flow"), (1.0, 0.75, 0.5, 0.25), "continuous")

    def kept(last):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            rollout(torch.randn(last + 1, *SHAPE), CONDITION, last)
        return sum(sizes)

    assert kept(3) == kept(0) > 0


def test_zero_quantization_weight_is_the_model_without_codebook():
    x0, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.2, 0.8])
    plain, calls = predictor(), []
    plain.quantizer.register_forward_hook(lambda *_: calls.append(1))
    loss = Denoising(plain, Schedule("flow"), 20.0, 0.0, 0.25)(x0, noise, t, CONDITION)
    loss.total.backward()
    assert not calls and loss.quantized is None
    assert all(p.grad is None for p in plain.quantizer.parameters())
    assert torch.equal(loss.total, loss.continuous)


class Affine(nn.Module):
    """A one-number student x = mean + deviation z."""

    def __init__(self):
        super().__init__()
        self.mean, self.deviation = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(1.0))


def test_a_gaussian_student_finds_the_teacher_when_both_scores_are_exact():
    schedule, student, draw = Schedule("flow"), Affine(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), 0.02, (0.0, 0.99))

    def posterior_mean(x_t, t, mean, deviation):
        alpha, sigma = schedule.coefficients(t, x_t)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    for step in range(1200):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 1200)
        x = student.mean + student.deviation * torch.randn(1024, 1, generator=draw)
        t = schedule.draw_times(1024, 0.02, 0.98, draw)
        with torch.no_grad():
            x_t = schedule.add_noise(x, torch.randn(x.shape, generator=draw), t)
            fake = posterior_mean(x_t, t, float(student.mean), float(student.deviation))
            real = posterior_mean(x_t, t, 2.0, 0.5)
            # one normaliser for the batch: a sample's own would weight samples by where they fell
            gradient = matching_gradient(x.T, fake.T, real.T).T
        optimizer.zero_grad()
        matching_loss(x, gradient).backward()
        optimizer.step()
    assert float(student.mean.detach()) == pytest.approx(2.0, abs=0.01)
    assert float(student.deviation.detach()) == pytest.approx(0.5, abs=0.01)
