"""``kedro run`` killed in the middle of a training, and typed again."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "kedro", "run", "--env", "tiny", "--params", "teacher.steps=400"]


def kedro(project, *arguments):
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.faults
def test_the_same_command_goes_on_and_repeats_nothing(tmp_path):
    project = tmp_path / "project"
    for name in ("conf", "src"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("local", "__pycache__"))
    shutil.copytree(ROOT / "tests/tiny", project / "conf/tiny")
    shutil.copy(ROOT / "pyproject.toml", project)
    made = kedro(project, "--pipelines", "demo_data")
    said, _ = made.communicate(timeout=300)
    assert made.returncode == 0, said
    process = kedro(project)
    end = time.monotonic() + 300
    while not list(project.glob("data/06_models/teacher-*/checkpoints/step-*")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    said, _ = kedro(project).communicate(timeout=600)
    for kind in ("autoencoder", "latents", "classifier"):
        assert f"{kind}: already complete, reused" in said, said
    assert "teacher: resumed at step" in said
    assert (project / "data/08_reporting/report.html").exists()
