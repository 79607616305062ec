"""The scale of the loss: what is saved by it, how it moves, and that ranks agree."""

import math

import pytest
import torch
from torch import nn

from qdm_pipeline import loss_scale
from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.loss_scale import LEAST, START, LossScale
from qdm_pipeline.models.precision import autocast
from qdm_pipeline.ranks import Ranks


def alone(precision="fp16"):
    return LossScale(precision, Ranks())


def gradient(scale):
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    with autocast(torch.device("cpu"), "fp16"):
        loss = layer(torch.ones(2, 4)).float().sum()
    scale(1e-9 * loss).backward()
    scale.undo(layer.parameters())
    return layer.weight.grad


def test_a_gradient_that_float16_cannot_hold_is_saved():
    assert not gradient(alone("fp32")).any()  # 1e-9 is 0 in float16
    found = gradient(alone())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((4, 4), 2e-9), rtol=1e-2, atol=0)


def test_scaling_rounds_nothing():
    weight = torch.randn(1000).requires_grad_()
    (weight**2).sum().backward()
    expected, weight.grad = weight.grad, None
    scale = alone()
    scale((weight**2).sum()).backward()
    assert torch.equal(weight.grad, START * expected)
    scale.undo([weight, torch.zeros(3)])  # the second has no gradient
    assert torch.equal(weight.grad, expected)


def test_an_overflow_halves_and_patience_doubles(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scale, values = alone(), []
    for norm in (1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0, math.nan):
        taken, metrics = scale.judge("teacher, update 0", norm)
        assert taken == math.isfinite(norm) == ("gradient_norm" in metrics)
        values.append(metrics["loss_scale"] / START)
    assert values == [1, 1, 0.5, 0.5, 0.5, 1, 1, 0.5]
    scale.judge("teacher, update 8", 1.0)
    resumed = alone()
    resumed.load_state_dict(scale.state_dict())
    assert (resumed.value, resumed.calm) == (START / 2, 1)


def test_overflow_at_the_least_scale_is_an_error_with_the_last_update_named():
    scale = alone()
    with pytest.raises(DivergenceError, match="critic, update 16: .* overflow at a loss scale of 1 too"):
        for update in range(100):
            scale.judge(f"critic, update {update}", math.inf)
    assert scale.value == LEAST


def test_a_loss_that_is_not_finite_is_no_overflow():
    scale = alone()
    scale(torch.tensor(math.nan))
    scale(torch.tensor(1.0))  # of the next micro-batch
    with pytest.raises(DivergenceError, match="update 3: not finite: the loss"):
        scale.judge("teacher, update 3", math.nan)
    assert scale.value == START


def test_ranks_decide_as_one():
    verdicts = []

    class Two(Ranks):
        def most(self, tensor):  # of the ranks so far and this one
            verdicts.append(tensor.clone())
            return tensor.copy_(torch.stack(verdicts).amax(0))

    ranks = [LossScale("fp16", Two(rank, 2)) for rank in range(2)]
    assert not ranks[0].judge("x", math.inf).taken and not ranks[1].judge("x", 1.0).taken
    assert ranks[0].value == ranks[1].value == START / 2


def test_micro_batches_are_scaled_alike_on_any_number_of_ranks():
    alone, two = (LossScale("fp16", Ranks(0, world)) for world in (1, 2))
    assert alone(torch.tensor(3.0) / 4) == two(torch.tensor(3.0) / 2)  # of four micro-batches


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_other_precisions_have_none(precision):
    scale, loss = alone(precision), torch.tensor(2.0)
    assert scale(loss) is loss and scale.state_dict() == {}
    assert scale.judge("x", 1.5) == (True, {"gradient_norm": 1.5})
    with pytest.raises(DivergenceError, match="x: not finite: gradient norm is inf"):
        scale.judge("x", math.inf)
