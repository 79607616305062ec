"""A folder of videos without a table, wide, high, broken, from the command line to the report; bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.framework.project import configure_project
from kedro.framework.session import KedroSession

from qdm_pipeline.video.media import write_mp4

ROOT = Path(__file__).parents[1]
UNCONDITIONAL = "teacher.condition=none,world_size=1"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("own")
    for name in ("conf", "src"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("local", "__pycache__"))
    shutil.copytree(ROOT / "tests/tiny", project / "conf/tiny")
    with (project / "conf/tiny/parameters.yml").open("a") as tiny:
        tiny.write("\nclips: {size: [[16, 24], [24, 16]]}  # height and width\n")
    shutil.copy(ROOT / "pyproject.toml", project)
    return project


@pytest.fixture
def folder(project: Path) -> Path:
    """Blinking squares at 8 frames a second, forty of 24×20 and twenty of 20×24, where the catalog says."""
    folder = project / "data/01_raw/digits"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "deep").mkdir(parents=True)
    for index in range(60):
        video = torch.zeros(3, 12, 20, 24, dtype=torch.uint8)
        video[index % 3, :: 1 + index % 4, 4:12, index % 12 : index % 12 + 8] = 250 - index
        video = video.mT if index % 3 == 0 else video
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
    assert "clips by height x width: {'16x24': 40, '24x16': 20}" in said
    assert "clips in the split 'validation' are too few to judge it by" in said
    metrics = json.loads((project / "data/08_reporting/metrics.json").read_text())
    rows = {row["name"]: row for row in metrics["rows"]}
    assert metrics["metric"].startswith("frechet[selfsup-") and "16x24" in metrics["metric"]
    assert rows["student"]["accuracy"] is None and rows["student"]["frechet"] > 0
    assert (project / "data/08_reporting/report.html").exists()


def test_a_mistake_ends_the_command_with_its_sentence(project: Path, folder: Path) -> None:
    failed = kedro(project, "--params", "teacher.model.widht=3")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: --params: teacher.model.widht: unknown; known are width")


MISTAKES = [
    ("no videos", {}, "no videos in it"),
    ("no folder", {}, "no such folder"),
    ("table", {}, "file 'missing.mp4' does not exist"),
    ("all broken", {}, "videos are bad"),
    ("", {"teacher": {"steps": "many"}}, "teacher.steps: found 'many'"),
    ("", {"techer": {"steps": 2}}, "techer: unknown; known are autoencoder"),
    ("", {"teacher": {"model": {"heads": 7}}}, "heads: found 7; width"),
    ("", {"clips": {"frames": 10}}, "clips.frames: found 10, the autoencoder takes 4 k + 1"),
    ("", {"clips": {"size": 33}}, "clips.size: found 33, the autoencoder takes 4 k"),
    ("", {"teacher": {"model": {"width": 1_000_000}}}, "GiB; take a smaller model"),
    ("", {"teacher": {"condition": "text"}}, "teacher.condition: found 'text', which needs encode.text"),
    ("", {"world_size": 0}, "world_size: found 0, must be auto or at least 1"),
    ("", {"evaluation": {"extractor": "i3d-ts"}}, "i3d_torchscript.pt: no such file; get it from"),
    ("no model", {}, "autoencoder.json: no autoencoder has been made yet"),
    ("pipeline trian", {}, "Did you mean one of these instead? train"),
    ("env midium", {}, "conf/midium"),
    ("node train.teach", {}, "does not contain nodes named ['train.teach']"),
]


@pytest.mark.parametrize(("spoil", "changes", "said"), MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_is_computed(
    project: Path,
    folder: Path,
    spoil: str,
    changes: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    asked, _, name = spoil.partition(" ")
    pipeline = {"pipeline": name, "no": "distill" if name == "model" else "__default__"}.get(asked)
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    configure_project("qdm_pipeline")
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - which one is the hook's business
        env = name if asked == "env" else "tiny"
        with KedroSession.create(project, env=env, runtime_params=changes) as session:
            session.run(
                pipeline_names=[pipeline or "__default__"], node_names=[name] if asked == "node" else None
            )
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert printed.startswith(("InputError: ", "kedro: ")) and said in printed
    assert printed.count("\n") == 1
