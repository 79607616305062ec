from pathlib import Path

import pytest
import torch
from PIL import Image

from qdm_pipeline.errors import InputError
from qdm_pipeline.video.decode import decode_pictures
from qdm_pipeline.video.media import write_grid, write_mp4


def test_mp4_round_trip(tmp_path: Path) -> None:
    video = torch.zeros(3, 5, 32, 48, dtype=torch.uint8)
    video[0, :, 8:24, 16:32] = 255
    write_mp4(tmp_path / "a.mp4", video, fps=8)
    back = torch.stack(
        [torch.from_numpy(image) for image in decode_pictures(tmp_path / "a.mp4", (32, 32), 8)]
    )
    assert back.shape == (5, 32, 32, 3)
    assert (back.permute(3, 0, 1, 2).float() - video[:, :, :, 8:40].float()).abs().mean() < 8


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="33x32"):
        write_mp4(tmp_path / "a.mp4", torch.zeros(3, 5, 32, 33, dtype=torch.uint8), fps=8)


def test_grid_files_move_and_fit(tmp_path: Path) -> None:
    videos = torch.randint(256, (5, 3, 9, 8, 8), dtype=torch.uint8)
    write_grid(tmp_path, "grid", videos, columns=3, fps=8, scale=2)
    for suffix in ("webp", "gif"):
        with Image.open(tmp_path / f"grid.{suffix}") as image:
            assert image.n_frames == 9 and image.size == (2 * 3 * 9, 2 * 2 * 9)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.getpixel((0, 0)) == tuple(videos[0, :, 4, 0, 0].tolist())
        assert image.getpixel((2 * 9, 2 * 9)) == tuple(videos[4, :, 4, 0, 0].tolist())
