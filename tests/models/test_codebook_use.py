"""Utilization, its ceiling, perplexity and histograms of token ids."""

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.models.codebook_use import codebook_use, uniform_ceiling, usage_histogram


def test_uniform_use_is_full_and_its_perplexity_is_the_size() -> None:
    codes = torch.arange(8).repeat(6).view(6, 1, 2, 2, 2).expand(6, 3, 2, 2, 2).int()
    use = codebook_use(usage_histogram(codes, 8))
    assert (use.size, use.tokens, use.utilization) == (8, 48, 1.0)
    assert use.perplexity == pytest.approx(8)


def test_groups_are_averaged() -> None:
    codes = torch.zeros(4, 2, 1, 1, 1, dtype=torch.int32)
    codes[:, 1, 0, 0, 0] = torch.tensor([0, 1, 2, 3])
    use = codebook_use(usage_histogram(codes, 4))
    assert use.utilization == pytest.approx((0.25 + 1) / 2)
    assert use.perplexity == pytest.approx((1 + 4) / 2)


def test_histograms_of_parts_add_up() -> None:
    codes = torch.randint(16, (10, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).int()
    whole = usage_histogram(codes, 16)
    assert torch.equal(whole, usage_histogram(codes[:3], 16) + usage_histogram(codes[3:], 16))
    assert int(whole.sum()) == codes.numel()


def test_ceiling_is_what_uniform_draws_reach() -> None:
    assert uniform_ceiling(16384, 65536) == pytest.approx(0.982, abs=5e-4)
    draws = torch.randint(512, (10, 64, 1, 10, 10), generator=torch.Generator().manual_seed(1))
    use = codebook_use(usage_histogram(draws, 512))
    assert use.utilization == pytest.approx(use.ceiling, abs=0.005)


def test_a_code_that_the_codebook_does_not_have() -> None:
    with pytest.raises(InputError, match="0 to 9, but the codebook has codes 0 to 7"):
        usage_histogram(torch.tensor([0, 9]).view(2, 1, 1, 1, 1), 8)
