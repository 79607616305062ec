"""A folder of videos without a table, one of them broken, from the command line to the report; bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qdm_pipeline.video.media import write_mp4

ROOT = Path(__file__).parents[1]
UNCONDITIONAL = "teacher.condition=none,clips.size=16,world_size=1"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("own")
    for name in ("conf", "src"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("local", "__pycache__"))
    shutil.copytree(ROOT / "tests/tiny", project / "conf/tiny")
    shutil.copy(ROOT / "pyproject.toml", project)
    return project


@pytest.fixture
def folder(project: Path) -> Path:
    """Forty blinking squares of 24×20 pixels at 8 frames a second, in the place that the catalog names."""
    folder = project / "data/01_raw/digits"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "deep").mkdir(parents=True)
    for index in range(40):
        video = torch.zeros(3, 12, 20, 24, dtype=torch.uint8)
        video[index % 3, :: 1 + index % 4, 4:12, index % 12 : index % 12 + 8] = 250 - index
        write_mp4(folder / "deep" / f"{index}.mp4", video, 8)
    return folder


def kedro(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(project / "src")}
    command = [sys.executable, "-m", "kedro", "run", "--env", "tiny", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_no_table_no_labels_one_broken_file(project: Path, folder: Path) -> None:
    (folder / "broken.mp4").write_bytes(b"this is no video" * 100)
    done = kedro(project, "--params", UNCONDITIONAL)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stderr + done.stdout
    assert "skipped broken.mp4: unreadable" in said
    assert "3 clips in the split 'validation' are too few to judge it by" in said
    metrics = json.loads((project / "data/08_reporting/metrics.json").read_text())
    rows = {row["name"]: row for row in metrics["rows"]}
    assert metrics["metric"].startswith("frechet[selfsup-")
    assert rows["student"]["accuracy"] is None and rows["student"]["frechet"] > 0
    assert (project / "data/08_reporting/report.html").exists()


@pytest.mark.parametrize(
    ("spoil", "arguments", "said"),
    [
        ("no videos", [], "no videos in it"),
        ("no folder", [], "no such folder"),
        ("table", [], "file 'missing.mp4' does not exist"),
        ("all broken", [], "videos are bad"),
        ("nothing", ["--params", "teacher.model.widht=3"], "teacher.model.widht: unknown; known are width"),
        ("nothing", ["--params", "teacher.steps=many"], "teacher.steps: found 'many'"),
        ("nothing", ["--params", "clips.frames=10"], "10"),
        ("nothing", ["--pipelines", "distill"], "has been made yet"),
    ],
)
def test_bad_input_is_one_clear_line(
    project: Path, folder: Path, spoil: str, arguments: list[str], said: str
) -> None:
    if spoil == "no videos":
        shutil.rmtree(folder / "deep")
    elif spoil == "no folder":
        shutil.rmtree(folder)
    elif spoil == "table":
        (folder / "metadata.csv").write_text("file\nmissing.mp4\n")
    elif spoil == "all broken":
        for file in (folder / "deep").iterdir():
            file.write_bytes(b"")
    for handle in (project / "data/06_models").glob("*.json"):
        handle.unlink()
    failed = kedro(project, *arguments)
    assert failed.returncode != 0
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: ") and said in last, failed.stderr[-2000:]
