"""The sbatch file on a Slurm of two nodes: cancelled in the middle, submitted again, the same bytes."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEACHER = ["--env", "tiny", "--pipelines", "train", "--tags", "teacher"]
CHANGES = ["--params", "teacher.steps=400,teacher.checkpoint.every=50,teacher.log_every=1"]


def nodes() -> int:
    if shutil.which("sinfo") is None:
        return 0
    return len(subprocess.run(["sinfo", "-hN", "-t", "idle"], capture_output=True).stdout.splitlines())


pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(nodes() < 2, reason="needs a Slurm with two idle nodes (docs/clusters.md)"),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with latents, its sbatch file without what a cluster of CPUs has not."""
    project = tmp_path / "project"
    for name in ("conf", "src"):
        ignored = shutil.ignore_patterns("local", "__pycache__")
        shutil.copytree(ROOT / name, project / name, ignore=ignored)
    shutil.copytree(ROOT / "tests/tiny", project / "conf/tiny")
    shutil.copy(ROOT / "pyproject.toml", project)
    text = (ROOT / "clusters/slurm.sbatch").read_text()
    lines = [line for line in text.splitlines() if "gpus-per-node" not in line and "cpus-per" not in line]
    (project / "slurm.sbatch").write_text(
        "\n".join(lines).replace(".venv/bin", os.path.dirname(sys.executable))
    )
    monkeypatch.setenv("PYTHONPATH", str(project / "src"))
    monkeypatch.chdir(project)
    for pipeline in ("demo_data", "preprocess"):
        kedro(project, "--env", "tiny", "--pipelines", pipeline)
    return project


def kedro(project: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "kedro", "run", *arguments]
    subprocess.run(command, cwd=project, check=True, capture_output=True)


def submit(*options: str) -> str:
    command = ["sbatch", "--parsable", *options, "slurm.sbatch", *TEACHER, *CHANGES]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def weights(project: Path) -> bytes:
    return next(project.glob("data/06_models/teacher-*/model.safetensors")).read_bytes()


def test_cancelled_and_submitted_again(project: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(project, alone)
    job, log = submit(), project / "data/06_models"
    for _ in range(600):
        time.sleep(0.5)
        curve = next(log.glob("teacher-*/metrics.jsonl"), None)
        if curve is not None and len(curve.read_text().splitlines()) > 120:
            break
    subprocess.run(["scancel", job], check=True)
    for _ in range(80):
        time.sleep(0.5)
        if not subprocess.run(["squeue", "-h", "-j", job], capture_output=True).stdout.strip():
            break
    said = (project / f"qdm-pipeline-{job}.log").read_text()
    assert (
        "teacher: stopped on SIGTERM after step" in said
        and "node1: task 1: Exited with exit code 143" in said
    )
    submit("--wait")
    kedro(alone, *TEACHER, *CHANGES)
    assert weights(project) == weights(alone)
