"""What happens to a run when files are hostile: nothing, but a row in a table."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_videos import CLIPS, SKIPPED, encode, hostile, noise

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.video.decode import Plan, decode_clips
from qdm_pipeline.video.decoders import Decoder, Decoders
from qdm_pipeline.video.picture import BadVideo
from qdm_pipeline.video.shards import ShardSet, ShardWriter

PLAN = Plan(frames=9, sizes=((32, 32),), fps=8, choice="first", count=1, cut=None)
ALL = Plan(frames=9, sizes=((32, 32),), fps=8, choice="all", count=1, cut=None)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("choice", ["uniform", "all"])
def test_hostile_files_are_named_and_good_ones_kept(
    every: int, choice: str, tmp_path: Path, cut: Callable[..., Handle]
) -> None:
    folder = tmp_path / "videos"
    expected = hostile(folder, every)
    good = [f"good-{number}.mp4" for number in range(12)]
    for number, name in enumerate(good):
        encode(folder / name, noise(27, 64, seed=number))
    clips = ShardSet(cut(folder, clips_per_video=choice, most_skipped=0.99, decoders=2).path)
    reasons = {row["file"]: row["reason"] for row in clips.manifest["skipped"]}
    with_clips = set(clips.column("file"))
    assert all(reasons.values()) and reasons.keys() | with_clips == expected.keys() | set(good)
    for name, fate in expected.items():
        assert fate != SKIPPED or name in reasons, name
        assert fate != CLIPS or name not in reasons, reasons[name]
    assert [file for file in clips.column("file") if file in good] == sorted(good * 3)
    assert not reasons.keys() & set(good)


def test_too_many_bad_files_end_the_run_with_a_table(tmp_path: Path, cut: Callable[..., Handle]) -> None:
    folder = tmp_path / "videos"
    hostile(folder, 20)
    for number in range(12):
        encode(folder / f"zz-good-{number}.mp4", noise(9, 64, seed=number))
    with pytest.raises(
        InputError, match=r"more than 10% of 22 videos are bad \(most_skipped\), the last one"
    ):
        cut(folder, most_skipped=0.1, root=tmp_path / "runs")
    [table] = (tmp_path / "runs").glob("*/skipped.json")
    assert len(read_json(table)) == 3


def test_the_clips_do_not_depend_on_the_number_of_decoders(
    tmp_path: Path, cut: Callable[..., Handle]
) -> None:
    for number in range(7):
        encode(tmp_path / f"{number}.mp4", noise(9 * (1 + number % 3), 64, seed=number))
    (tmp_path / "5.mp4").write_text("broken")
    one, three = (cut(tmp_path, clips_per_video="all", decoders=count) for count in (1, 3))
    assert one.digest == three.digest


def test_a_killed_cut_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, cut: Callable[..., Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(7):
        encode(folder / f"{number}.mp4", noise(9 * (1 + number % 3), 64, seed=number))
    (folder / "2.mp4").write_text("broken")
    (folder / "9.mp4").write_text("broken")
    how = {"clips_per_video": "all", "shard_size": 2}
    whole = cut(folder, **how)
    original = ShardWriter.put
    for stop in (0, 1, 3, 5):  # 10 clips are five shards; the end of the last one is the end of all

        def dying(self: ShardWriter, number: int, *samples: object, **more: object) -> None:
            original(self, number, *samples, **more)  # type: ignore[arg-type]
            if number == stop:  # noqa: B023
                raise KeyboardInterrupt

        root = tmp_path / f"runs-{stop}"
        monkeypatch.setattr(ShardWriter, "put", dying)
        if stop < 5:
            with pytest.raises(KeyboardInterrupt):
                cut(folder, root=root, **how)
        monkeypatch.setattr(ShardWriter, "put", original)
        again = cut(folder, root=root, **how)
        assert again.digest == whole.digest and again.metadata["skipped"] == 2


def test_the_process_gives_the_clips_of_the_function(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", noise(40, 64), rotation=(90, False))
    with Decoders(1, ALL, seconds=20, mebibytes=1024) as decoders:
        [found] = [list(clips) for clips in decoders.decode([path])]
    for (start, video), clip in zip(found, decode_clips(path, ALL), strict=True):
        assert start == clip.start and torch.equal(video, torch.from_numpy(clip.pixels).permute(3, 0, 1, 2))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [encode(tmp_path / f"{number}.mp4", noise(270, 64, seed=number)) for number in range(2)]


def pid_of(decoders: Decoders) -> int:
    process = decoders.decoders[0].process
    assert process is not None
    return process.pid


@pytest.mark.parametrize(
    ("blow", "reason"),
    [(signal.SIGSTOP, "no clip within 0.5 s"), (signal.SIGSEGV, "its decoder was ended by SIGSEGV")],
)
def test_a_hang_or_a_crash_costs_one_file(blow: signal.Signals, reason: str, files: list[Path]) -> None:
    with Decoders(1, ALL, seconds=0.5, mebibytes=1024) as decoders:
        decoders.decoders[0].seconds = 20
        films = decoders.decode(files)
        film = next(films)
        next(film)
        decoders.decoders[0].seconds = 0.5
        os.kill(struck := pid_of(decoders), blow)
        with pytest.raises(BadVideo, match=reason):
            list(film)  # what was in the pipe comes first
        decoders.decoders[0].seconds = 20
        assert len(list(next(films))) == 30
        assert pid_of(decoders) != struck


def test_a_file_that_needs_much_memory_is_refused_and_the_next_one_served(tmp_path: Path) -> None:
    wide = encode(
        tmp_path / "wide.mkv", torch.zeros(3, 1, 4096, 4096, dtype=torch.uint8), "mjpeg", "yuvj420p"
    )
    small = encode(tmp_path / "small.mp4", noise(9, 64))
    with Decoders(1, PLAN, seconds=20, mebibytes=20) as decoders:
        for number, clips in enumerate(decoders.decode([wide, small])):
            if number == 0:
                with pytest.raises(BadVideo, match="needs more than 20 MiB of memory"):
                    list(clips)
            else:
                assert len(list(clips)) == 1


def test_no_process_is_left(files: list[Path]) -> None:
    decoder = Decoder(ALL, seconds=20, mebibytes=1024)
    decoder.send(files[0])
    next(decoder.clips())
    assert decoder.process is not None
    pid = decoder.process.pid
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
