import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_videos import encode, noise

from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.video.folder import videos_handle
from qdm_pipeline.video.media import write_mp4
from qdm_pipeline.video.shards import ShardSet

Cut = Callable[..., Handle]


def write_videos(folder: Path, count: int, frames: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        video = torch.full((3, frames, 32, 32), 20 * number, dtype=torch.uint8)
        write_mp4(folder / f"{number}.mp4", video, fps=8)


def test_clips_carry_table_and_pixels(demo_videos: Path, demo_clips: ShardSet) -> None:
    assert len(demo_clips) == 84
    assert demo_clips.manifest["classes"] == list("0123456789")
    assert {split: len(demo_clips.rows(split)) for split in ("train", "validation", "test")} == {
        "train": 60, "validation": 12, "test": 12,
    }  # fmt: skip
    video = demo_clips.gather("video", torch.tensor([0, 83]))
    assert video.shape == (2, 3, 9, 32, 32) and video.dtype == torch.uint8
    assert video.max() > 200 and video.median() < 10
    assert demo_clips.column("id") == list(range(84))
    assert demo_clips.column("caption")[0].startswith("the digit ")


def test_a_folder_without_a_table(tmp_path: Path, cut: Cut) -> None:
    write_videos(tmp_path / "films" / "deep", 6)
    shards = ShardSet(cut(tmp_path / "films").path)
    assert shards.manifest["classes"] is None
    assert shards.column("label") == [None] * 6
    assert sorted(shards.column("split")) == ["test", "train", "train", "train", "train", "validation"]
    assert shards.column("file")[0] == "deep/0.mp4"


def test_captions_and_labels_beside_the_videos(tmp_path: Path, cut: Cut) -> None:
    write_videos(tmp_path, 6)
    before = videos_handle(tmp_path).digest
    (tmp_path / "1.txt").write_text(" a grey film\n")
    (tmp_path / "2.json").write_text('{"caption": "another", "label": "grey", "seconds": 3}')
    (tmp_path / "3.json").write_text('{"label": "black"}')
    (tmp_path / "3.txt").write_text("a third")
    shards = ShardSet(cut(tmp_path).path)
    assert shards.column("caption") == [None, "a grey film", "another", "a third", None, None]
    assert shards.manifest["classes"] == ["black", "grey"]
    assert shards.column("label") == [None, None, 1, 0, None, None]
    first = videos_handle(tmp_path).digest
    (tmp_path / "1.txt").write_text("a darker film")
    assert len({before, first, videos_handle(tmp_path).digest}) == 3
    (tmp_path / "2.json").write_text('["another"]')
    with pytest.raises(InputError, match="2.json: must be an object"):
        cut(tmp_path)


def test_a_table_goes_before_what_lies_beside(tmp_path: Path, cut: Cut) -> None:
    write_videos(tmp_path, 4)
    rows = [
        f"{i}.mp4,{'first' if i == 0 else ''},{split}"
        for i, split in enumerate(["train", "train", "validation", "test"])
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(["file,caption,split", *rows]))
    for number in (0, 1):
        (tmp_path / f"{number}.txt").write_text("beside")
    assert ShardSet(cut(tmp_path).path).column("caption") == ["first", "beside", None, None]


def test_long_videos_give_consecutive_clips_of_one_split(tmp_path: Path, cut: Cut) -> None:
    write_videos(tmp_path, 3, frames=30)
    shards = ShardSet(cut(tmp_path, clips_per_video="all").path)
    assert shards.column("start")[:3] == [0.0, 1.125, 2.25]
    assert shards.column("end")[:3] == [1.125, 2.25, 3.375]
    assert len(shards) == 9 and len(set(shards.column("split")[:3])) == 1


def test_clips_before_the_damage_stay(tmp_path: Path, cut: Cut) -> None:
    write_videos(tmp_path, 4, frames=30)
    truncated = encode(tmp_path / "0.mp4", noise(60, 64), movflags="faststart")
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size * 2 // 3])
    shards = ShardSet(cut(tmp_path, clips_per_video="all").path)
    [row] = shards.manifest["skipped"]
    assert row["file"] == "0.mp4" and re.search("truncated|unreadable", row["reason"])
    assert shards.column("file")[: row["clips_kept"] + 1] == ["0.mp4"] * row["clips_kept"] + ["1.mp4"]
    assert row["clips_kept"] in (3, 4) and len(shards) == row["clips_kept"] + 3 * 3


def test_bad_videos_are_skipped_and_named(tmp_path: Path, cut: Cut, caplog: pytest.LogCaptureFixture) -> None:
    write_videos(tmp_path, 6)
    write_videos(tmp_path / "short", 1, frames=5)
    (tmp_path / "text.mp4").write_text("no video")
    with caplog.at_level(logging.WARNING):
        handle = cut(tmp_path)
    skipped = {entry["file"]: entry["reason"] for entry in ShardSet(handle.path).manifest["skipped"]}
    assert set(skipped) == {"short/0.mp4", "text.mp4"} and handle.metadata["skipped"] == 2
    assert "too short: 5 frames" in skipped["short/0.mp4"]
    assert "text.mp4" in caplog.text
    with pytest.raises(InputError, match="more than 20% of 8 videos are bad.* text.mp4"):
        cut(tmp_path, most_skipped=0.2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,split\n0.mp4,train\ngone.mp4,test\n", r"metadata.csv, line 3: file 'gone.mp4' does not exist"),
        ("file,split\n0.mp4,trian\n", r"line 2: split 'trian', allowed are train, validation, test"),
        ("file\n0.mp4\n0.mp4\n", r"line 3: file '0.mp4' is listed twice"),
        ("name\n0.mp4\n", r"no column 'file'"),
        ("file\n", r"no rows"),
    ],
)
def test_a_wrong_table_is_an_error_before_decoding(
    table: str, message: str, tmp_path: Path, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text(table)
    monkeypatch.setattr("qdm_pipeline.video.clips.Decoders", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match=message):
        cut(tmp_path)


def test_no_videos_and_empty_splits_are_errors(tmp_path: Path, cut: Cut) -> None:
    with pytest.raises(InputError, match="no such folder"):
        cut(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no videos"):
        cut(tmp_path)
    write_videos(tmp_path, 2)
    with pytest.raises(InputError, match="no clip in split train"):
        cut(tmp_path)


def test_the_digest_follows_content_not_time(tmp_path: Path) -> None:
    write_videos(tmp_path / "a", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert videos_handle(tmp_path / "a").digest == videos_handle(tmp_path / "b").digest
    (tmp_path / "b" / "metadata.csv").write_text("file\n0.mp4\n1.mp4\n")
    assert videos_handle(tmp_path / "a").digest != videos_handle(tmp_path / "b").digest
