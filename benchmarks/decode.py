"""Frames of a film at training size: ours against bare PyAV, and what two hours of film take of memory."""

import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import av
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from benchmarks.harness import report, spread, take_turns
from qdm_pipeline.randomness import generator
from qdm_pipeline.video.decode import Plan, decode_pictures
from qdm_pipeline.video.decoders import Decoders

FRAMES, SIDE, SIZE, FPS = 240, 256, 128, 24
ROUNDS = 9
HOURS, SECONDS, SMALL = 2, 10, 64


def film(path: Path, frames: int, side: int, fps: int) -> Path:
    """Soft noise that moves; the same in every run."""
    draw = generator(0, 0, 0, "film")
    texture = torch.rand(side * 2 // 8, side * 2 // 8, 3, generator=draw).mul(255).to(torch.uint8)
    texture = texture.repeat_interleave(8, 0).repeat_interleave(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "23"})
        stream.width = stream.height = side
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for number in range(frames):
            shift = number % side
            image = texture[shift : shift + side, shift : shift + side].contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def bare(path: Path) -> int:
    """PyAV alone: decode, resize to RGB with the same filter, hand over as an array."""
    reformatter, count = VideoReformatter(), 0
    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            scaled = reformatter.reformat(frame, SIZE, SIZE, "rgb24", interpolation=flags, threads=1)
            count += scaled.to_ndarray().shape[0] > 0
    return count


def speed(path: Path) -> None:
    """Frames a second of processor time on one core; of the clock with the decoder in its own process."""

    def ours() -> int:
        return sum(1 for _ in decode_pictures(path, (SIZE, SIZE), FPS))

    seconds: dict[str, list[float]] = {"floor": [], "ours": []}
    for _ in range(ROUNDS):
        for name, act in (("floor", lambda: bare(path)), ("ours", ours)):
            begun = process_time()
            act()
            seconds[name].append(process_time() - begun)
    say("one core", "frames/s of processor time", seconds)
    plan = Plan(frames=16, sizes=((SIZE, SIZE),), fps=FPS, choice="all", count=1, cut=None)
    with Decoders(1, plan, seconds=60, mebibytes=2048) as decoders:
        contestants = {
            "floor": lambda: bare(path),
            "ours": lambda: [list(clips) for clips in decoders.decode([path])],
        }
        say("through a child", "frames/s", take_turns(contestants, ROUNDS))


def say(case: str, metric: str, seconds: dict[str, list[float]]) -> None:
    rates = {key: FRAMES / median(times) for key, times in seconds.items()}
    ratio = rates["ours"] / rates["floor"]
    report(f"{SIDE} to {SIZE} pixels, {case}", metric, rates, ratio, spread(seconds["ours"]), ">= 0.85")


def memory(folder: Path) -> None:
    """Peak of the decoder's resident memory over all clips of a file."""
    peaks = {}
    for name, seconds in ((f"{SECONDS} s", SECONDS), (f"{HOURS} h", HOURS * 3600)):
        path = film(folder / f"{seconds}.mp4", 8 * seconds, SMALL, 8)
        plan = Plan(frames=16, sizes=((SMALL, SMALL),), fps=8, choice="all", count=1, cut=None)
        with Decoders(1, plan, seconds=60, mebibytes=2048) as decoders:
            for clips in decoders.decode([path]):
                count = sum(1 for _ in clips)
                process: Any = decoders.decoders[0].process
                status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
        peaks[name] = round(int(peak) / 1024, 1)
        assert count == 8 * seconds // 16
    grown = peaks[f"{HOURS} h"] - peaks[f"{SECONDS} s"]
    row = {"case": "resident memory of the decoder", "metric": "MiB", **peaks, "more": round(grown, 1)}
    print(json.dumps(row | {"goal": "<= 100", "ok": grown <= 100}), flush=True)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        speed(film(Path(temporary) / "film.mp4", FRAMES, SIDE, FPS))
        memory(Path(temporary))
