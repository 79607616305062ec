"""Real processes, real signals: the same command again ends with the bytes of a run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.teacher import TeacherSettings

PROGRAM = (
    "import sys; from pathlib import Path; from qdm_pipeline.launch.agent import run_job; "
    "from qdm_pipeline.run import Run; run_job(Run.read(Path(sys.argv[1])), 2)"
)


def start(run):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(run.file)], stderr=subprocess.PIPE, text=True)


def workers(run):
    """Process ids of the run's ranks, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            environment = (process / "environ").read_bytes().decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if "qdm_pipeline.launch.worker" in command and str(run.file) in command:
            variables = dict(pair.split("=", 1) for pair in environment.split("\0") if "=" in pair)
            found[int(variables["RANK"])] = int(process.name)
    return found


def wait_until(condition, process):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("waited in vain")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_rank_and_ctrl_c_lose_nothing(latents, teacher_settings, tmp_path):
    settings = build(
        TeacherSettings,
        teacher_settings
        | {"steps": 150, "micro_batch": 2, "checkpoint": {"every": 10, "keep_last": 2, "keep_every": None}},
    )
    inputs = {"latents": Handle("latents", latents.directory, latents.digest)}
    alone, hurt = (Run.create("teacher", settings, inputs, tmp_path / name) for name in ("alone", "hurt"))
    assert start(alone).wait(120) == 0

    process = start(hurt)
    wait_until(lambda: checkpoint.latest(hurt.directory), process)
    os.kill(workers(hurt)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "rank 1 was ended by SIGKILL" in said
    reached = checkpoint.latest(hurt.directory).step

    process = start(hurt)
    wait_until(lambda: checkpoint.latest(hurt.directory).step > reached, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not workers(hurt) and hurt.result() is None

    assert start(hurt).wait(120) == 0
    assert hurt.result().digest == alone.result().digest
    assert [row["step"] for row in hurt.metrics()] == list(range(1, 151))
