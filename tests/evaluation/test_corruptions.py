"""Corruptions grow with their strength, and motion is measured as it is defined."""

import pytest
import torch
from torch import Tensor

from qdm_pipeline.evaluation.corruptions import CORRUPTIONS, corrupted_reader
from qdm_pipeline.evaluation.motion import motion, wasserstein
from qdm_pipeline.evaluation.readers import noise_reader, shuffled_reader


def videos() -> Tensor:
    """Eight bright squares on dark ground that move to the right, a pixel a frame."""
    made = torch.full((8, 3, 9, 32, 32), 20, dtype=torch.uint8)
    for index in range(8):
        for frame in range(9):
            made[index, :, frame, 4 + index : 14 + index, 6 + frame : 16 + frame] = 200
    return made


VIDEOS = videos()


def read(positions: Tensor) -> Tensor:
    return VIDEOS[positions]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_strength_changes_clips_more(name: str) -> None:
    everything = torch.arange(8)
    changes = []
    for strength in (0.25, 0.5, 0.75, 1.0):
        changed = corrupted_reader(read, name, strength, 0)(everything)
        assert changed.shape == VIDEOS.shape and changed.dtype == torch.uint8
        changes.append(float((changed.float() - VIDEOS.float()).abs().mean()))
        one_by_one = [corrupted_reader(read, name, strength, 0)(everything[i : i + 1]) for i in range(8)]
        assert torch.equal(torch.cat(one_by_one), changed)
    assert changes == sorted(changes) and changes[0] > 0


def test_frames_are_shuffled_and_none_is_lost() -> None:
    shuffled = shuffled_reader(read, 0)(torch.arange(8))
    assert not torch.equal(shuffled, VIDEOS)
    for clip, original in zip(shuffled, VIDEOS, strict=True):
        frames = {frame.numpy().tobytes() for frame in clip.unbind(1)}
        assert frames == {frame.numpy().tobytes() for frame in original.unbind(1)}


def test_noise_is_as_bright_as_the_clip() -> None:
    noise = noise_reader(read, 0)(torch.arange(8)).float()
    torch.testing.assert_close(noise.mean((1, 2, 3, 4)), VIDEOS.float().mean((1, 2, 3, 4)), rtol=0.3, atol=0)


def test_motion_and_flicker() -> None:
    """A square ten high moves a pixel a frame: 20 of 1024 pixels change by 180; it flickers at its edges."""
    moved = motion(VIDEOS)
    torch.testing.assert_close(moved[:, 0], torch.full((8,), 20 * 180 / 255 / 1024))
    torch.testing.assert_close(moved[:, 1], torch.full((8,), 40 * 180 / 255 / 1024))
    assert (motion(VIDEOS[:, :, :1].expand_as(VIDEOS)) == 0).all()
    assert motion(VIDEOS[:, :, :2]).isnan().all()


def test_wasserstein_distance_on_a_line() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(50, generator=draw)
    assert wasserstein(a, a + 2.5) == pytest.approx(2.5, rel=1e-5)
    assert wasserstein(a, a.repeat(3)) == pytest.approx(0, abs=1e-7)
    assert wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0, 3.0])) == pytest.approx(5 / 6)
