"""What this machine and this project have, and what they lack: the first thing to send with a question."""

import os
import platform
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from kedro.config import OmegaConfigLoader
from packaging.requirements import Requirement

from qdm_pipeline.launch.world import describe
from qdm_pipeline.models.precision import multiplies_bfloat16
from qdm_pipeline.settings import CONFIG_LOADER_ARGS
from qdm_pipeline.training.memory import main_memory
from qdm_pipeline.video.folder import SUFFIXES

SHOWN = ("torch", "kedro", "kedro-viz", "mlflow", "av", "numpy", "safetensors")
LEAST_DISK = 5 * 2**30  # bytes that the embedded example and its checkpoints like to have


def examine(project: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """(what, found) lines, and a sentence with its remedy for everything that will stop a run."""
    extras, problems = _extras()
    disk = shutil.disk_usage(project)
    if disk.free < LEAST_DISK:
        problems.append(
            f"{project}: {disk.free / 2**30:.1f} GiB free; make room, or link data/ to a larger disk"
        )
    lines = [
        ("qdm-pipeline", f"{version('qdm-pipeline')} in {project}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, _version(name) or "missing") for name in SHOWN),
        ("cpu", f"{os.cpu_count()} cores, {_memory()}, {_bfloat16('cpu')}"),
        *_gpus(),
        ("world_size: auto", describe("auto")),
        ("disk", f"{disk.free / 2**30:.0f} of {disk.total / 2**30:.0f} GiB free"),
        ("raw_videos", _videos(project / _catalog(project)["raw_videos"]["path"])),
        *extras,
    ]
    return lines, problems


def _gpus() -> Iterator[tuple[str, str]]:
    if not torch.cuda.is_available():
        yield "gpu", "none that torch can use"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {_bfloat16('cuda')}"


def _bfloat16(device: str) -> str:
    return "bfloat16" if multiplies_bfloat16(device) else "no bfloat16 (precision auto is float32)"


def _catalog(project: Path) -> Any:
    return OmegaConfigLoader(str(project / "conf"), **CONFIG_LOADER_ARGS)["catalog"]


def _memory() -> str:
    found = main_memory()
    return "memory unknown" if found is None else f"{found / 2**30:.1f} GiB"


def _videos(folder: Path) -> str:
    count = sum(file.suffix.lower() in SUFFIXES for file in folder.rglob("*"))
    if not count:
        return f"none in {folder}: `kedro run --pipelines demo_data` makes some"
    return f"{count} in {folder}"


def _extras() -> tuple[list[tuple[str, str]], list[str]]:
    """A line for every extra, and a problem for every requirement that is missing or has another version."""
    lacking, problems = defaultdict[str, list[str]](list), []
    for text in requires("qdm-pipeline") or []:
        requirement = Requirement(text)
        extra = next(iter(re.findall(r'extra == "(\w+)"', text)), None)
        found = _version(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        if extra is not None:
            lacking[extra] += [] if fits else [requirement.name]
        elif not fits:
            problems.append(
                f"{requirement.name}: found {found}, wanted {requirement.specifier}; make install"
            )
    lines = [
        (f"extra {extra}", f"lacks {', '.join(names)}: pip install -e .[{extra}]" if names else "installed")
        for extra, names in lacking.items()
    ]
    return lines, problems


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
