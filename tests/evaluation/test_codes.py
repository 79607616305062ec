"""What the report says of single codes: who uses them, and what is lost with them."""

import pytest
import torch
from torch import Tensor

from qdm_pipeline.evaluation.code_clips import clips_of_codes, enlarged, spotlight
from qdm_pipeline.evaluation.code_dropout import DAMAGES, SHARES, Damage
from qdm_pipeline.models.codebook_use import usage_histogram

BOOK = torch.tensor([[[0.0], [1.0], [3.0], [10.0]], [[5.0], [0.0], [4.0], [-9.0]]])  # 2 groups of 4 codes


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def codes() -> Tensor:
    return torch.randint(4, (2, 3, 8, 8), generator=draw())


@pytest.fixture
def damage() -> Damage:
    return Damage(BOOK, torch.tensor([[8, 8, 8, 0], [0, 0, 0, 8]]))


def test_every_code_has_its_nearest_other(damage: Damage) -> None:
    assert damage.nearest.tolist() == [[1, 0, 1, 2], [2, 2, 0, 1]]
    assert damage.typical.tolist() == [1, 3]  # nearest to 4 / 3 and to -9


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_larger_share_changes_the_same_and_more(damage: Damage, codes: Tensor, kind: str) -> None:
    changed = [damage(codes, kind, share, draw()) for share in (0.0, *SHARES)]
    assert torch.equal(changed[0], codes)
    for less, more in zip(changed, changed[1:], strict=False):
        differs = less != codes
        assert torch.equal(more[differs], less[differs])


def test_as_many_change_as_were_to(damage: Damage, codes: Tensor) -> None:
    quarter = (damage(codes, "nearest code", 0.25, draw()) != codes).float().mean()
    assert float(quarter) == pytest.approx(0.25, abs=0.07)
    everything = damage(codes, "nearest code", 1.0, draw())
    assert torch.equal(everything[0], damage.nearest[0][codes[0]])
    half = damage(codes, "groups lost", 0.5, draw())
    assert sorted(torch.equal(*pair) for pair in zip(half, codes, strict=True)) == [False, True]
    assert all(group.unique().numel() == 1 for group in damage(codes, "groups lost", 1.0, draw()))


def test_codes_are_shown_by_the_clips_that_use_them_most() -> None:
    """Code 1 fills one quarter of clip n in its first n + 1 frames; code 3 is used by one clip only."""
    codes = torch.zeros(8, 1, 9, 8, 8, dtype=torch.int32)
    for clip in range(8):
        codes[clip, 0, : clip + 1, 4:, 4:] = 1
    codes[0, 0, 8] = 3
    videos = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1, 1).expand(8, 3, 9, 16, 16).contiguous()
    shown = clips_of_codes(codes, usage_histogram(codes, 4), lambda positions: videos[positions])
    assert set(shown) == {"used/0-0", "rare/0-1"}
    rare = shown["rare/0-1"]
    assert rare.shape == (1, 6, 3, 9, 8, 8)  # of 16 pixels those 8 in which the code stands
    assert rare[0, :, 0, 0, 0, 0].tolist() == [7, 6, 5, 4, 3, 2]
    assert (rare[0, 1, :, :7] == 6).all() and (rare[0, 1, :, 7:] > 80).all()


def test_light_falls_where_the_code_stands() -> None:
    used = torch.zeros(2, 2, 2, dtype=torch.bool)
    used[1, 0, 1] = True
    lit = spotlight(torch.full((3, 5, 4, 4), 200, dtype=torch.uint8), used)
    assert (lit[:, 1:, :2, 2:] == 200).all() and (lit == 200).sum() == 3 * 4 * 2 * 2
    assert enlarged(torch.arange(3).view(3, 1, 1), 9, 1, 1).flatten().tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
