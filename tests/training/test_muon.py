from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training import muon
from qdm_pipeline.training.muon import Muon, orthogonalised

SHAPES = ((24, 8), (8, 32), (24, 8), (16, 16))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_same_way_as_torch_as_far_as_bfloat16_can_tell(monkeypatch, bfloat16):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: bfloat16)
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in SHAPES]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = (
        Muon(ours, 0.02, momentum=0.95, weight_decay=0.1, precision="auto", ranks=Ranks()),
        torch.optim.Muon(theirs, 0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradients = [torch.randn(shape, generator=draw) for shape in SHAPES]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (a - first).norm()


def test_float32_stays_float32_where_the_hardware_multiplies_bfloat16(monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: True)
    matrices = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    true = orthogonalised(matrices.double(), "fp32")
    assert (orthogonalised(matrices, "fp32") - true).abs().max() < 1e-5
    assert (orthogonalised(matrices, "auto") - true).abs().max() > 1e-4


def test_singular_vectors_stay_and_values_come_near_one():
    matrices = torch.randn(3, 12, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    for tall in (False, True):
        made = orthogonalised(matrices.mT if tall else matrices, "fp32")
        inner = u.mT @ (made.mT if tall else made) @ vh.mT
        values = inner.diagonal(dim1=1, dim2=2)
        assert (inner - torch.diag_embed(values)).abs().max() < 1e-9
        assert 0.6 < values.min() <= values.max() < 1.3


def test_parameters_without_gradient_stay_and_the_state_resumes():
    def parameters():
        draw = torch.Generator().manual_seed(1)
        return [nn.Parameter(torch.randn(8, 4, generator=draw)) for _ in range(2)]

    whole, parts = parameters(), parameters()
    gradient = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    optimizers = [Muon(each, 0.1, 0.9, 0.0, "fp32", Ranks()) for each in (whole, parts)]
    for step in range(4):
        whole[0].grad, parts[0].grad = (gradient * (step + 1) for _ in range(2))
        optimizers[0].step()
        if step == 2:
            resumed = Muon(parts, 0.1, 0.9, 0.0, "fp32", Ranks())
            resumed.load_state_dict(optimizers[1].state_dict())
            optimizers[1] = resumed
        optimizers[1].step()
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parameters()[1])


@dataclass(frozen=True)
class Watched(Ranks):
    """A rank whose sums stay its own."""

    summed: list = field(default_factory=list)

    def sum(self, tensor):
        self.summed.append(tensor.clone())
        return tensor


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_shares_of_all_ranks_are_what_one_process_finds(world):
    everyone = [Watched(), *(Watched(rank, world) for rank in range(world))]
    for ranks in everyone:
        draw = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in (*SHAPES, *SHAPES)]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        Muon(parameters, 0.1, 0.9, 0.0, "fp32", ranks).step()
    alone, *shares = ([*ranks.summed] for ranks in everyone)
    assert len(alone) == 3
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(whole, sum(parts))
        assert all((part.flatten(1).any(1).sum() <= -(-len(whole) // world)) for part in parts)
