import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_videos import SOURCES, encode, noise, write_audio
from torch import Tensor

from qdm_pipeline.video.decode import Clip, Plan, decode_clips, decode_pictures
from qdm_pipeline.video.media import write_mp4
from qdm_pipeline.video.picture import BadVideo


def ramp(frames: int, height: int = 32, width: int = 32) -> Tensor:
    """Frame ``i`` is grey of value 8·i."""
    grey = torch.arange(frames, dtype=torch.uint8) * 8
    return grey.view(1, -1, 1, 1).expand(3, frames, height, width).contiguous()


def shades(path: Path, fps: float) -> list[int]:
    return [round(float(picture.mean()) / 8) for picture in decode_pictures(path, (32, 32), fps)]


def first(path: Path, size: int = 32) -> Tensor:
    """The first picture: float [size, size, 3]."""
    return torch.from_numpy(next(decode_pictures(path, (size, size), 8))).float()


def test_frames_come_back_at_their_own_rate(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", ramp(12), fps=8)
    pictures = list(decode_pictures(tmp_path / "a.mp4", (32, 32), 8))
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert shades(tmp_path / "a.mp4", 8) == list(range(12))


def test_other_rates_drop_and_repeat_frames(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", ramp(24), fps=24)
    assert shades(tmp_path / "a.mp4", 8) == list(range(0, 24, 3))
    assert shades(tmp_path / "a.mp4", 48) == [i for i in range(24) for _ in range(2)]
    assert len(shades(tmp_path / "a.mp4", 29.97)) == 30


@pytest.mark.parametrize("begin", [0.0, -2.0, 5.0])
def test_variable_rates_follow_the_time_stamps(begin: float, tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.55, 0.6, 2.0, 2.1, 2.2]
    path = encode(tmp_path / "a.ts", ramp(8), times=[begin + time for time in times])
    on_show = [max(i for i, time in enumerate(times) if time <= n / 8 + 0.02) for n in range(18)]
    assert shades(path, 8)[:18] == on_show


def test_aspect_is_kept_and_the_middle_cut_out(tmp_path: Path) -> None:
    video = torch.zeros(3, 3, 64, 128, dtype=torch.uint8)
    video[:, :, :, 32:96] = 255  # the middle square is white
    write_mp4(tmp_path / "wide.mp4", video, fps=8)
    picture = first(tmp_path / "wide.mp4")
    assert picture.shape == (32, 32, 3)
    assert picture[:, 3:-3].min() > 240
    write_mp4(tmp_path / "small.mp4", torch.full((3, 2, 16, 24), 200, dtype=torch.uint8), fps=8)
    assert first(tmp_path / "small.mp4").shape == (32, 32, 3)


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    video = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    video[:, :, :, 16:48] = 255  # 64 of 128 columns as shown: all that the middle square sees
    path = encode(tmp_path / "a.mp4", video, sample_aspect_ratio=Fraction(2))
    assert first(path)[:, 2:-2].min() > 250


@pytest.mark.parametrize(("width", "height"), [(33, 47), (63, 32), (32, 35)])
def test_odd_sizes(width: int, height: int, tmp_path: Path) -> None:
    video = torch.full((3, 3, height, width), 90, dtype=torch.uint8)
    picture = first(encode(tmp_path / "a.mkv", video, "ffv1", "yuv444p"))
    assert picture.shape == (32, 32, 3) and (picture - 90).abs().max() <= 2


def corners() -> Tensor:
    """Red, green, blue and white quarters, read like text."""
    video = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    for number, (top, left) in enumerate(((0, 0), (0, 32), (32, 0))):
        video[number, :, top : top + 32, left : left + 32] = 255
    video[:, :, 32:, 32:] = 255
    return video


ORIENTATIONS: dict[tuple[int, bool], Callable[[Tensor], Tensor]] = {
    (0, False): lambda image: image,
    (90, False): lambda image: image.rot90(1),
    (180, False): lambda image: image.rot90(2),
    (-90, False): lambda image: image.rot90(-1),
    (0, True): lambda image: image.flip(1),
}


@pytest.mark.parametrize("how", ORIENTATIONS)
def test_turned_films_are_shown_upright(how: tuple[int, bool], tmp_path: Path) -> None:
    options = {"crf": "1"}
    plain = first(encode(tmp_path / "a.mp4", corners(), pix_fmt="yuv444p", options=options))
    turned = encode(tmp_path / "b.mp4", corners(), pix_fmt="yuv444p", options=options, rotation=how)
    assert (first(turned) - ORIENTATIONS[how](plain)).abs().max() <= 2


@pytest.mark.parametrize("how", ORIENTATIONS)
def test_rectangles_are_cut_from_the_middle(how: tuple[int, bool], tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", corners(), pix_fmt="yuv444p", options={"crf": "1"}, rotation=how)
    wide, high = (torch.from_numpy(next(decode_pictures(path, size, 8))) for size in ((24, 40), (40, 24)))
    square = first(path, 40)
    assert (wide - square[8:32]).abs().max() <= 2 and (high - square[:, 8:32]).abs().max() <= 2


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("colorspace", [1, 5])
def test_colours_survive_range_matrix_and_depth(
    pix_fmt: str, color_range: int, colorspace: int, tmp_path: Path
) -> None:
    """Ranges: 1 limited, 2 full. Matrices: 1 BT.709, 5 BT.601."""
    tags = {"color_range": color_range, "colorspace": colorspace}
    video = torch.zeros(3, 2, 48, 48, dtype=torch.uint8)
    for shade in ((200, 40, 60), (30, 220, 90), (255, 255, 255), (0, 0, 0)):
        video[:] = torch.tensor(shade, dtype=torch.uint8).view(3, 1, 1, 1)
        path = encode(tmp_path / "a.mkv", video, "ffv1", pix_fmt, **tags)
        assert (first(path) - torch.tensor(shade)).abs().max() <= 4


def test_transparency_lies_over_black(tmp_path: Path) -> None:
    video = torch.full((4, 2, 32, 32), 200, dtype=torch.uint8)
    video[3, :, :, :16], video[3, :, :, 16:] = 255, 64
    picture = first(encode(tmp_path / "a.mov", video, "png", "rgba"))
    assert (picture[:, :15] - 200).abs().max() <= 1 and (picture[:, 17:] - 200 * 64 / 255).abs().max() <= 1


def test_interlaced_films_have_no_combs(tmp_path: Path) -> None:
    """A bar that moves between the two fields of a frame: rows of a column would alternate."""
    fields = torch.zeros(3, 16, 64, 64, dtype=torch.uint8)
    for number in range(16):
        fields[:, number, :, 4 * number % 40 : 4 * number % 40 + 16] = 255
    woven = fields[:, ::2].clone()
    woven[:, :, 1::2] = fields[:, 1::2, 1::2]
    path = encode(tmp_path / "a.mp4", woven, options={"crf": "1", "x264-params": "tff=1:interlaced=1"})
    plain = encode(tmp_path / "b.mp4", woven, options={"crf": "1"})
    comb, smooth = (
        (picture[1:].astype(int) - picture[:-1]).__abs__().mean()
        for picture in (list(decode_pictures(p, (64, 64), 8))[3] for p in (plain, path))
    )
    assert len(list(decode_pictures(path, (64, 64), 8))) == 8
    assert smooth < 0.3 * comb


def plan(choice: str, count: int = 3, frames: int = 4, fps: float = 8) -> Plan:
    return Plan(frames, ((32, 32),), fps, choice, count, None)


def clips(path: Path, plan: Plan) -> list[Clip]:
    return list(decode_clips(path, plan))


@pytest.mark.parametrize("name", SOURCES)
def test_clips_from_the_middle_are_those_of_the_whole(name: str, tmp_path: Path) -> None:
    path = encode(tmp_path / name, noise(40, 64), **SOURCES[name])
    fps = 25 if name == "stream.mpg" else 8
    whole = np.stack(list(decode_pictures(path, (32, 32), fps)))
    assert len(whole) == 40
    starts = {}
    for choice in ("first", "centre", "uniform", "all"):
        cut = clips(path, plan(choice, fps=fps))
        starts[choice] = [round(clip.start * fps) for clip in cut]
        for clip in cut:
            begin = round(clip.start * fps)
            assert np.array_equal(clip.pixels, whole[begin : begin + 4]), (choice, begin)
    assert starts == {
        "first": [0], "centre": [18], "uniform": [0, 18, 36], "all": list(range(0, 40, 4))
    }  # fmt: skip


def test_short_films_give_the_uniform_clips_that_fit(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", ramp(10), fps=8)
    assert [clip.start for clip in clips(tmp_path / "a.mp4", plan("uniform", count=5))] == [0, 0.75]
    write_mp4(tmp_path / "b.mp4", ramp(5), fps=8)
    assert [clip.start for clip in clips(tmp_path / "b.mp4", plan("uniform", count=5))] == [0]
    for choice in ("first", "centre", "uniform", "all"):
        with pytest.raises(BadVideo, match="too short: 5 frames at 8 per second, a clip has 6"):
            clips(tmp_path / "b.mp4", plan(choice, frames=6))


def write_truncated(path: Path) -> None:
    write_mp4(path, ramp(30), fps=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_cut_stream(path: Path) -> None:
    """An index that promises 30 frames before data that end early."""
    encode(path, noise(30, 64), movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("not a video at all\n" * 100), "unreadable"),
        (lambda path: path.write_text(f"#EXTM3U\n#EXTINF:9,\n{__file__}\n#EXT-X-ENDLIST\n"), "unreadable"),
        (write_audio, "no video stream"),
        (write_truncated, "unreadable"),
        (write_cut_stream, "truncated|unreadable"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
    ],
    ids=["empty", "text", "playlist", "audio", "no index", "cut stream", "dangling link"],
)
def test_bad_files_have_a_reason(write: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    write(path)
    for choice in ("first", "centre", "uniform", "all"):
        with pytest.raises(BadVideo) as raised:
            clips(path, plan(choice))
        assert re.search(reason, str(raised.value)), (choice, raised.value)
