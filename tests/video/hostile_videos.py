"""Videos as people have them: well-formed ones of every kind, and a folder of 200 hostile ones by name."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

SKIPPED, CLIPS, EITHER = "skipped", "clips", "either"  # what must become of a file


def noise(frames: int, side: int, seed: int = 0) -> Tensor:
    """Frames of soft random blobs, which no encoder can leave out: uint8 [3, T, side, side]."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.randint(256, (3, frames, side // 8, side // 8), dtype=torch.uint8, generator=draw)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)


def encode(
    path: Path,
    video: Tensor,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: float = 8,
    form: str | None = None,
    times: Sequence[float] | None = None,
    rotation: tuple[int, bool] | None = None,
    matrix: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    interlaced: bool = False,
    movflags: str | None = None,
    **context: Any,
) -> Path:
    """Write ``video`` (uint8 [3 or 4, T, H, W]); ``times`` in seconds replace the rate, ``context`` tags."""
    container_options = {"movflags": movflags} if movflags else {}
    if times is not None and min(times) < 0:
        container_options["avoid_negative_ts"] = "disabled"
    layout = {3: "rgb24", 4: "rgba"}[len(video)]
    with av.open(str(path), "w", format=form, options=container_options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = video.shape[2], video.shape[3], pix_fmt
        stream.codec_context.thread_count = 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for number, image in enumerate(video.permute(1, 2, 3, 0).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(image, format=layout)
            if "color_range" in context or "colorspace" in context:
                frame = frame.reformat(
                    format=pix_fmt,
                    dst_colorspace=context.get("colorspace"),
                    dst_color_range=context.get("color_range"),
                    threads=1,  # with two, libswscale spoils a row of 10-bit 4:2:2
                )
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, form: str = "mp4", codec: str = "aac") -> Path:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        for number in range(20):
            kind, sample = ("fltp", np.float32) if codec == "aac" else ("s16", np.int16)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=sample), format=kind, layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


SOURCES: dict[str, dict[str, Any]] = {
    "index-last.mp4": {},
    "index-first.mp4": {"movflags": "faststart"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov", "options": {"g": "8"}},
    "film.mkv": {},
    "film.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "old.avi": {"codec": "mpeg4"},
    "stream.mpg": {"codec": "mpeg2video", "fps": 25, "form": "mpegts"},
    "loop.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


def hostile(folder: Path, every: int = 1) -> dict[str, str]:
    """Fill ``folder`` with every ``every``-th of 200 hostile files; returns what must become of each."""
    folder.mkdir(parents=True)
    sources = {}
    for name, how in SOURCES.items():
        sources[name] = encode(folder / name, noise(40, 64), **how).read_bytes()
        (folder / name).unlink()
    makers = [*_strange(), *_cut(sources), *_flipped(sources, 200 - 9 * len(sources) - len(list(_strange())))]
    assert len(makers) == 200 and len({name for name, _, _ in makers}) == 200
    expected = {}
    for name, fate, make in makers[::every]:
        make(folder / name)
        expected[name] = fate
    return expected


Maker = tuple[str, str, Callable[[Path], object]]


def _cut(sources: dict[str, bytes]) -> Iterator[Maker]:
    """Truncations at every tenth. Only of formats with an index or promise at the front is the loss known."""
    for name, content in sources.items():
        for tenth in range(1, 10):
            part = content[: len(content) * tenth // 10]
            fate = SKIPPED if name in ("index-last.mp4", "index-first.mp4") else EITHER
            yield f"cut-{tenth}-{name}", fate, lambda path, part=part: path.write_bytes(part)


def _flipped(sources: dict[str, bytes], count: int) -> Iterator[Maker]:
    """Random bytes in random places: what a decoder can notice depends on where they fall."""
    for number in range(count):
        name = list(sources)[number % len(sources)]
        content, draw = bytearray(sources[name]), random.Random(number)
        for _ in range(1 + number // 8):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield f"flip-{number}-{name}", EITHER, lambda path, part=bytes(content): path.write_bytes(part)


def _strange() -> Iterator[Maker]:
    film = noise(40, 64, seed=1)
    yield "zero.mp4", SKIPPED, lambda path: path.write_bytes(b"")
    yield "text.mp4", SKIPPED, lambda path: path.write_text("not a video at all\n" * 100)
    yield "random.mkv", SKIPPED, lambda path: path.write_bytes(random.Random(0).randbytes(10000))
    yield "head-only.mp4", SKIPPED, lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(12))
    yield "playlist.mp4", SKIPPED, lambda path: path.write_text(PLAYLIST)
    yield "script.mp4", SKIPPED, lambda path: path.write_text("ffconcat version 1.0\nfile zero.mp4\n")
    yield "audio.mp4", SKIPPED, write_audio
    yield "audio.avi", SKIPPED, lambda path: write_audio(path, "wav", "pcm_s16le")
    yield "gone.mp4", SKIPPED, lambda path: path.symlink_to("nowhere.mp4")
    yield "one-frame.mp4", SKIPPED, lambda path: encode(path, film[:, :1])
    yield "one-pixel.gif", SKIPPED, lambda path: encode(path, film[:, :, :1, :1], **SOURCES["loop.gif"])
    yield "sliver.mkv", SKIPPED, lambda path: encode(path, noise(20, 512)[:, :, :8], "ffv1", "yuv444p")
    yield "odd.mkv", CLIPS, lambda path: encode(path, film[:, :, :61, :33], "ffv1", "yuv444p")
    yield (
        "8k-gif.gif",
        SKIPPED,
        lambda path: _patch(path, film, "loop.gif", b"GIF89a", 6, "<HH", 65535, 65535),
    )
    yield "8k-jpeg.avi", SKIPPED, lambda path: _lying_jpeg(path, film)
    yield (
        "8k-box.mp4",
        EITHER,
        lambda path: _patch(path, film, "index-last.mp4", b"avc1", 28, ">HH", 7680, 4320),
    )
    yield "turned.mp4", CLIPS, lambda path: encode(path, film, rotation=(90, False))
    yield "mirrored.mp4", CLIPS, lambda path: encode(path, film, rotation=(-90, True))
    yield "slanted.mp4", SKIPPED, lambda path: encode(path, film, rotation=(30, False))
    yield "no-rate.mp4", CLIPS, lambda path: encode(path, film, times=[0.01 * n * n for n in range(40)])
    yield "negative.ts", CLIPS, lambda path: encode(path, film, times=[n / 8 - 2 for n in range(40)])
    yield "no-clock.mkv", SKIPPED, lambda path: encode(path, film, times=[n / 8 - 2 for n in range(40)])
    yield "gap.mkv", SKIPPED, lambda path: encode(path, film[:, :5], times=[0, 0.1, 0.2, 1e5, 1e5 + 1])
    yield "hdr.mp4", SKIPPED, lambda path: encode(path, film, "libx265", "yuv420p10le", color_trc=16)
    yield "raw.mp4", SKIPPED, lambda path: encode(path, film, form="h264")
    yield "many-bits.mp4", CLIPS, lambda path: encode(path, film, "libx265", "yuv420p10le")
    yield "wide-pixels.mp4", CLIPS, lambda path: encode(path, film, sample_aspect_ratio=Fraction(2))


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n"


def _patch(path: Path, video: Tensor, source: str, after: bytes, skip: int, layout: str, *size: int) -> None:
    content = bytearray(encode(path, video, **SOURCES[source]).read_bytes())
    struct.pack_into(layout, content, content.index(after) + skip, *size)
    path.write_bytes(content)


def _lying_jpeg(path: Path, video: Tensor) -> None:
    """Every frame header says 65,000 x 65,000."""
    content = bytearray(encode(path, video, "mjpeg", "yuvj420p").read_bytes())
    place = content.find(b"\xff\xc0")
    while place >= 0:
        struct.pack_into(">HH", content, place + 5, 65000, 65000)
        place = content.find(b"\xff\xc0", place + 1)
    path.write_bytes(content)
