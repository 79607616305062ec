import copy

import pytest
import torch
from torch import nn

from qdm_pipeline.diffusion.sampler import ddim, renoise
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.denoising import Denoising
from qdm_pipeline.distillation.dmd import Draw
from qdm_pipeline.distillation.rollout import Rollout
from qdm_pipeline.models.precision import autocast
from qdm_pipeline.models.predictor import Condition

SHAPE = (2, 3, 1, 2, 2)
CONDITION = Condition(torch.tensor([0, 1]))


def kept_for_backward(act):
    """Bytes of the distinct tensors that autograd keeps."""
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = act()
    return sum(sizes.values()), result


def without_gradient(module):
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


OPTIONS = [
    {}, {"path": "continuous"}, {"path": "soft"}, {"codebook": "ema"}, {"codebook": "trained"},
    {"renoising": "kept"}, {"inputs": "noised"}, {"matching": "forward_kl"}, {"matching": "reverse_kl"},
    {"matching": "jeffreys"}, {"normalise": False}, {"denoising_weight": 0.5}, {"regression_weight": 0.5},
    {"gan": {"student_weight": 0.1}}, {"matching": "jeffreys", "gan": {"student_weight": 0.1}},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("last", [0, 1])
def test_student_loss_reaches_every_parameter_of_the_student_and_no_other(make, draw, last, options):
    dmd = make(**options)
    loss = dmd.student_loss(draw(last))
    total = loss.total
    if dmd.settings.regression_weight:
        total = total + dmd.regression_loss(torch.randn(SHAPE), torch.randn(SHAPE), CONDITION, last)
    total.backward()
    assert not without_gradient(dmd.student)
    others = [*dmd.teacher.parameters(), *dmd.critic.parameters()]
    assert all(p.grad is None for p in others)
    assert all(value.isfinite() for value in (*loss.parts.values(), *loss.pulls.values(), loss.gap))


@pytest.mark.parametrize("options", [{}, {"gan": {"student_weight": 0.1, "r1_weight": 1.0}}], ids=str)
def test_critic_loss_reaches_the_whole_critic_no_other_role_and_no_codebook(make, draw, options):
    dmd = make(**options)
    before = dmd.student.quantizer.codebook.clone()
    loss = dmd.critic_loss(draw(1))
    loss.total.backward()
    assert not without_gradient(dmd.critic)
    assert all(p.grad is None for role in (dmd.teacher, dmd.student) for p in role.parameters())
    assert all(p.grad is None for p in dmd.fake_score.quantizer.parameters())
    dmd.student.quantizer.commit(0, 0)
    assert torch.equal(dmd.student.quantizer.codebook, before)
    assert (loss.discriminator is None) == (not options)


def test_at_the_start_scores_agree_and_without_guidance_there_is_no_gradient(make, draw):
    loss = make(guidance=1.0).student_loss(draw(0))
    assert float(loss.gap) < 1e-6 and float(loss.total.detach()) < 1e-9


def test_roles_are_independent_copies(make):
    dmd = make()
    with torch.no_grad():
        dmd.student.final_proj.bias.add_(1)
    assert not torch.equal(dmd.student.final_proj.bias, dmd.fake_score.final_proj.bias)
    assert torch.equal(dmd.teacher.final_proj.bias, dmd.fake_score.final_proj.bias)


@pytest.mark.parametrize(("renoising", "sampler"), [("fresh", renoise), ("kept", ddim)])
def test_the_rollout_is_the_sampler(predictor, dmd_settings, renoising, sampler):
    times, schedule = (1.0, 0.75, 0.5, 0.25), Schedule("flow")
    rollout = Rollout(predictor, schedule, dmd_settings(times=list(times), renoising=renoising))

    def denoiser(x, t):
        return predictor(x, t, CONDITION, "quantized").x0

    draw = torch.Generator().manual_seed(3)
    noise = torch.stack([torch.randn(SHAPE, generator=draw) for _ in times])
    draw.manual_seed(3)
    with torch.no_grad():
        sampled = sampler(denoiser, torch.randn(SHAPE, generator=draw), times, schedule, draw)
        assert torch.equal(rollout(noise, CONDITION, 3).prediction.x0, sampled)


def test_the_adversarial_pull_is_the_gradient_of_the_adversarial_loss(make, draw):
    dmd, one = make(gan={"student_weight": 2.0}), draw(0)
    plain = copy.deepcopy(dmd)
    dmd.student_loss(one).total.backward()
    plain.settings = make().settings  # the matching loss alone ...
    plain.discriminator = None
    plain.student_loss(one).total.backward()
    answer = plain.rollout(one.noise, one.condition, 0).prediction.x0  # ... and the adversarial one by itself
    x_t = plain.schedule.add_noise(answer, one.renoise[0], one.t)
    features = plain.fake_score.features(x_t, one.t, one.condition)
    (2.0 * nn.functional.softplus(-dmd.discriminator(features, 0)).mean()).backward()
    for a, b in zip(dmd.student.parameters(), plain.student.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_the_adversarial_pull_is_kept_in_float16(make):
    # each of many positions has a small share in the mean, of which float16 would keep a bit or none
    dmd, shape = make(gan={"student_weight": 0.1}), (16, 3, 1, 16, 16)
    normal = torch.Generator().manual_seed(0)
    noise, noises = (torch.randn(n, *shape, generator=normal) for n in (1, 3))
    draw = Draw(noise, 0, torch.full((16,), 0.5), noises, Condition(torch.arange(16) % 2), None)
    pulls = []
    for precision in ("fp32", "fp16"):
        with autocast(torch.device("cpu"), precision):
            pulls.append(dmd._look(noise[0].clone(), draw)[2])
    assert (pulls[1] - pulls[0]).norm() < 0.01 * pulls[0].norm()


def test_four_steps_keep_no_more_than_one_and_scores_keep_nothing(make, draw, predictor):
    dmd = make(times=[1.0, 0.75, 0.5, 0.25])
    bytes_of = {last: kept_for_backward(lambda last=last: dmd.student_loss(draw(last)))[0] for last in (0, 3)}
    assert bytes_of[3] <= 1.05 * bytes_of[0]
    alone, _ = kept_for_backward(lambda: dmd.rollout(draw(0).noise, CONDITION, 0))
    assert bytes_of[0] <= 1.05 * alone  # nothing of teacher and fake score


def test_noised_inputs_are_real_latents_at_the_time_of_the_step(make, draw, predictor):
    one = draw(1)
    answer = make(inputs="noised").rollout(one.noise, one.condition, 1, one.real)
    half = torch.full((2,), 0.5)
    x = Schedule("flow").add_noise(one.real, one.noise[0], half)
    assert torch.allclose(answer.features, predictor.features(x, half, one.condition), atol=1e-6)


def test_a_trained_codebook_moves_by_gradient_and_is_loaded_as_any_other(make, draw, predictor):
    dmd = make(codebook="trained")
    dmd.student_loss(draw(0)).total.backward()
    assert dmd.student.quantizer.codebook.grad.abs().sum() > 0
    predictor.load_state_dict(dmd.student.state_dict())
    assert not isinstance(predictor.quantizer.codebook, nn.Parameter)


def test_a_codebook_that_follows_collects_from_the_trained_answer_only(make, draw):
    dmd = make(codebook="ema")
    dmd.critic_loss(draw(1))
    assert dmd.student.quantizer.collected[..., -1].sum() == 0
    dmd.student_loss(draw(1)).total.backward()
    assert dmd.student.quantizer.collected[..., -1].sum() == 2 * 8  # groups x positions of one answer
    assert "codebook/replaced" in dmd.student.quantizer.commit(0, 0)


def test_zero_quantization_weight_is_the_model_without_codebook(predictor):
    x0, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.2, 0.8])
    calls = []
    predictor.quantizer.register_forward_hook(lambda *_: calls.append(1))
    loss = Denoising(predictor, Schedule("flow"), 20.0, 0.0, 0.25)(x0, noise, t, CONDITION)
    loss.total.backward()
    assert not calls and loss.quantized is None
    assert all(p.grad is None for p in predictor.quantizer.parameters())
    assert torch.equal(loss.total, loss.continuous)
