"""Write the videos of the embedded example."""

from pathlib import Path
from typing import Any

from qdm_pipeline.errors import InputError
from qdm_pipeline.video.demo_data import DemoSettings, write_demo_videos


def write_videos(settings: DemoSettings, folder: Path) -> dict[str, Any]:
    """Fill ``folder`` with videos and their table; `InputError` if it holds anything but an older example."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").exists():
        raise InputError(f"{folder}: not empty and not written by this pipeline, so it is left alone")
    return write_demo_videos(settings, folder)
