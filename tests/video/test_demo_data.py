import csv
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from qdm_pipeline.files import digest_file
from qdm_pipeline.video.demo_data import DIRECTIONS, DemoSettings, moving, write_demo_videos


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_no_scan_is_in_two_splits(demo_videos: Path) -> None:
    rows = table(demo_videos)
    sources = {
        split: {r["source"] for r in rows if r["split"] == split} for split in ("train", "validation", "test")
    }
    assert [sum(r["split"] == split for r in rows) for split in sources] == [60, 12, 12]
    assert all(a.isdisjoint(b) for a, b in combinations(sources.values(), 2))


def test_captions_name_label_and_direction(demo_videos: Path) -> None:
    rows = table(demo_videos)
    assert {row["label"] for row in rows} == set("0123456789")
    seven = next(row for row in rows if row["label"] == "7")
    assert seven["caption"].startswith("the digit seven moving ")
    assert seven["caption"].removeprefix("the digit seven moving ") in {said for _, said in DIRECTIONS}


def test_the_same_settings_write_the_same_bytes(demo_settings: DemoSettings, tmp_path: Path) -> None:
    few = replace(demo_settings, train_clips=3, validation_clips=1, test_clips=1)
    digests = []
    for name in ("a", "b"):
        write_demo_videos(few, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append([digest_file(path) for path in files])
    assert len(digests[0]) == 5 + 2
    assert digests[0] == digests[1]


def test_finished_videos_are_kept(demo_settings: DemoSettings, demo_videos: Path) -> None:
    before = (demo_videos / "metadata.csv").stat().st_mtime_ns
    write_demo_videos(demo_settings, demo_videos)
    assert (demo_videos / "metadata.csv").stat().st_mtime_ns == before


def test_motion_bounces_at_the_border(demo_settings: DemoSettings) -> None:
    scan = torch.full((20, 20), 255, dtype=torch.uint8)
    right = DIRECTIONS.index(((0, 1), "to the right"))
    video = moving(scan, replace(demo_settings, speed=2), right, [5, 8])[0]
    lefts = [int(frame.any(0).nonzero()[0]) for frame in video]
    assert lefts == [8, 10, 12, 10, 8, 6, 4, 2, 0]
    assert all(int(frame.any(1).nonzero()[0]) == 5 for frame in video)


def test_wrong_settings_are_named(demo_settings: DemoSettings) -> None:
    with pytest.raises(ValueError, match="even"):
        replace(demo_settings, size=33)
    with pytest.raises(ValueError, match="digit_size"):
        replace(demo_settings, digit_size=40)
