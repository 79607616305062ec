"""Videos for people to look at: MP4 files and animated grids."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qdm_pipeline.errors import InputError

# About crf 10 the eye sees no loss. At small sizes x264's look-ahead for B-frames and macroblock trees reads
# memory that nothing wrote, and the same frames gave different files: both are off.
X264 = {"crf": "10", "preset": "veryfast", "x264-params": "bframes=0:mbtree=0"}


def write_mp4(path: Path, video: Tensor, fps: int) -> None:
    """Write ``video`` (uint8 RGB [3, T, H, W]) as H.264, the same bytes every time.

    `InputError` if H or W is odd, which the format cannot hold.
    """
    import av  # not on every machine that trains

    _, _, height, width = video.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: a video of {width}x{height} cannot be written, both must be even")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in video.permute(1, 2, 3, 0).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def write_grid(directory: Path, name: str, videos: Tensor, columns: int, fps: int, scale: int) -> None:
    """Write ``videos`` (uint8 RGB [N, 3, T, H, W]) side by side, each pixel ``scale`` pixels wide.

    Makes ``name``.webp and ``name``.gif (animated, looping) and ``name``.png (the middle frames).
    """
    images = write_animation(directory / f"{name}.webp", videos, columns, fps, scale)
    images[0].save(directory / f"{name}.gif", save_all=True, **_timing(images, fps))
    images[len(images) // 2].save(directory / f"{name}.png")


def write_animation(file: Path, videos: Tensor, columns: int, fps: int, scale: int) -> list[Image.Image]:
    """Write a looping WebP of ``videos`` as in `write_grid`; returns its frames."""
    images = [Image.fromarray(frame.numpy()) for frame in _tile(videos, columns, scale)]
    images[0].save(file, save_all=True, lossless=True, **_timing(images, fps))
    return images


def _timing(images: list[Image.Image], fps: int) -> dict[str, Any]:
    return {"append_images": images[1:], "duration": round(1000 / fps), "loop": 0}


def _tile(videos: Tensor, columns: int, scale: int) -> Tensor:
    """Frames of the grid, uint8 [T, rows·scale·(H + 1), columns·scale·(W + 1), 3], grey lines between."""
    count, _, frames, height, width = videos.shape
    rows = -(-count // columns)
    tiles = torch.full((rows * columns, 3, frames, height + 1, width + 1), 64, dtype=torch.uint8)
    tiles[:count, :, :, :height, :width] = videos
    grid = tiles.unflatten(0, (rows, columns)).permute(
        3, 0, 4, 1, 5, 2
    )  # [T, rows, H + 1, columns, W + 1, 3]
    grid = grid.flatten(3, 4).flatten(1, 2)
    return grid.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
