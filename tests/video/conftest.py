"""Small videos of the embedded example, made once for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.video.clips import ClipSettings, make_clips
from qdm_pipeline.video.demo_data import DemoSettings, write_demo_videos
from qdm_pipeline.video.folder import videos_handle
from qdm_pipeline.video.shards import ShardSet


@pytest.fixture(scope="session")
def demo_settings() -> DemoSettings:
    size = {"frames": 9, "size": 32, "fps": 8, "digit_size": 20, "speed": 1}
    return DemoSettings(seed=0, train_clips=60, validation_clips=12, test_clips=12, **size)


@pytest.fixture(scope="session")
def demo_videos(demo_settings: DemoSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "videos"
    write_demo_videos(demo_settings, folder)
    return folder


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Handle]:
    """Clips of 9 frames at 8 a second, 32 x 32, unless told otherwise."""

    def cut(folder: Path, decoders: int = 1, root: Path | None = None, **changes: object) -> Handle:
        values: dict[str, object] = {"frames": 9, "size": 32, "fps": 8.0, "clips_per_video": "first"}
        values |= {
            "uniform_clips": 3,
            "most_seconds": 20,
            "most_memory": 1024,
            "most_skipped": 0.5,
            "shot_cut": None,
        }
        values |= {"validation_fraction": 0.2, "test_fraction": 0.2}
        settings = ClipSettings(**(values | {"shard_size": 32, "seed": 0} | changes))  # type: ignore[arg-type]
        root = root or tmp_path_factory.mktemp("runs")
        run = Run.create("clips", settings, {"videos": videos_handle(folder)}, root)
        return make_clips(settings, folder, run, decoders)

    return cut


@pytest.fixture(scope="session")
def demo_clips(demo_videos: Path, cut: Callable[..., Handle]) -> ShardSet:
    return ShardSet(cut(demo_videos).path)
