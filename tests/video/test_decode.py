from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from qdm_pipeline.video.decode import BadVideo, decode_frames
from qdm_pipeline.video.media import write_mp4


def ramp(frames: int, height: int, width: int) -> Tensor:
    """Frame ``i`` is grey of value 8·i."""
    grey = torch.arange(frames, dtype=torch.uint8) * 8
    return grey.view(1, -1, 1, 1).expand(3, frames, height, width).contiguous()


def shades(path: Path, fps: float) -> list[int]:
    return [round(frame.float().mean().item() / 8) for frame in decode_frames(path, 32, fps)]


def test_frames_come_back_at_their_own_rate(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", ramp(12, 32, 32), fps=8)
    frames = list(decode_frames(tmp_path / "a.mp4", 32, 8))
    assert all(frame.shape == (3, 32, 32) and frame.dtype == torch.uint8 for frame in frames)
    assert shades(tmp_path / "a.mp4", 8) == list(range(12))


def test_other_rates_drop_and_repeat_frames(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", ramp(24, 32, 32), fps=24)
    assert shades(tmp_path / "a.mp4", 8) == list(range(0, 24, 3))
    assert shades(tmp_path / "a.mp4", 48) == [i for i in range(24) for _ in range(2)]
    assert len(shades(tmp_path / "a.mp4", 29.97)) == 30


def test_aspect_is_kept_and_the_middle_cut_out(tmp_path: Path) -> None:
    video = torch.zeros(3, 3, 64, 128, dtype=torch.uint8)
    video[:, :, :, 32:96] = 255  # the middle square is white
    write_mp4(tmp_path / "wide.mp4", video, fps=8)
    frame = next(decode_frames(tmp_path / "wide.mp4", 32, 8)).float()
    assert frame.shape == (3, 32, 32)
    assert frame[:, :, 3:-3].min() > 240
    small = torch.full((3, 2, 16, 24), 200, dtype=torch.uint8)
    write_mp4(tmp_path / "small.mp4", small, fps=8)
    assert next(decode_frames(tmp_path / "small.mp4", 32, 8)).shape == (3, 32, 32)


def write_audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_truncated(path: Path) -> None:
    write_mp4(path, ramp(30, 32, 32), fps=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_cut_stream(path: Path) -> None:
    """An index that promises 30 frames before data that end early."""
    noise = torch.randint(256, (3, 30, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for image in noise.permute(1, 2, 3, 0).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("not a video at all\n" * 100), "unreadable"),
        (write_audio, "no video stream"),
        (write_truncated, "unreadable"),
        (write_cut_stream, "truncated|unreadable"),
    ],
    ids=["empty", "text", "audio", "no index", "cut stream"],
)
def test_bad_files_have_a_reason(write, reason: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.mp4"
    write(path)
    with pytest.raises(BadVideo, match=reason):
        list(decode_frames(path, 32, 8))
