"""Peak memory, against sums that can be done by hand."""

import pytest
import torch
import torch.nn.functional as F

from qdm_pipeline.training.peak_memory import peak_memory

CPU = torch.device("cpu")
KIB = 1024


@pytest.fixture
def x() -> torch.Tensor:
    return torch.zeros(256)  # 1 KiB


def test_what_was_there_before_and_views_of_it_do_not_count(x: torch.Tensor) -> None:
    assert peak_memory(lambda: x.view(16, 16).t()[:3], CPU) == 0
    assert peak_memory(lambda: x.add_(1), CPU) == 0


def test_what_is_let_go_makes_room(x: torch.Tensor) -> None:
    def chain() -> torch.Tensor:
        y = x
        for _ in range(10):
            y = y + 1  # two at a time, the old and the new
        return y

    assert peak_memory(chain, CPU) == 2 * KIB
    assert peak_memory(lambda: [x + 1 for _ in range(10)], CPU) == 10 * KIB


def test_the_worst_moment_counts_not_the_last(x: torch.Tensor) -> None:
    assert peak_memory(lambda: x.repeat(8).sum() + 1, CPU) == 8 * KIB + 4


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_steps_inside_an_operation_count(mode: type) -> None:
    """Attention that is asked to add a mask holds its weights, 4 heads of 64 x 64 numbers, at least."""
    q = torch.zeros(1, 4, 64, 8)

    def attend() -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, q, q)

    with mode():
        assert 4 * 64 * 64 * 4 <= peak_memory(attend, CPU) <= 5 * 4 * 64 * 64 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_asked() -> None:
    device = torch.device("cuda")
    x = torch.zeros(1 << 20, device=device)
    assert peak_memory(lambda: (x + 1) + 1, device) == 8 << 20
