"""Real processes, real signals: whatever happens, the same command ends with the run that would have been.

"Identical" is a SHA-256 over weights, averages, optimizers, codebook and counters at the last step.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.teacher import TeacherSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")

SITE = str(Path(__file__).parent / "site")
PROGRAM = (
    "import sys; from pathlib import Path; from qdm_pipeline.launch.agent import run_job; "
    "from qdm_pipeline.run import Run; run_job(Run.read(Path(sys.argv[1])), 2)"
)
STEPS, EVERY = 12, 2


@pytest.fixture
def make_run(latents, teacher_settings, distill_settings, make_teacher, tmp_path):
    (tmp_path / "teacher").mkdir()
    make_teacher().export(tmp_path / "teacher")

    def make(kind, folder):
        common = dict(
            steps=STEPS, micro_batch=2, checkpoint={"every": EVERY, "keep_last": 2, "keep_every": None}
        )
        inputs = {"latents": Handle("latents", latents.directory, "l")}
        if kind == "teacher":
            settings = build(TeacherSettings, teacher_settings | common)
        else:
            settings = build(DistillSettings, distill_settings({"codebook": "ema"}, **common))
            inputs |= {"teacher": Handle("teacher", tmp_path / "teacher", "t")}
        return Run.create(kind, settings, inputs, tmp_path / folder)

    return make


def start(run, **fault):
    path = os.pathsep.join([SITE, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "QDM_DIGEST": "1"}
    if fault:
        environment["QDM_FAULT"] = json.dumps(fault)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(run.file)], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process, timeout=120):
    _, said = process.communicate(timeout=timeout)
    return process.returncode, said


def orphans(run):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(run.file) in (process / "cmdline").read_bytes().decode():
                found.append(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def state(run):
    return (run.directory / "state.sha256").read_text(), run.result().digest


ALONE = {}  # what undisturbed runs end with, by kind: they need not be made again for every round


def undisturbed(make_run, kind):
    if kind not in ALONE:
        run = make_run(kind, "alone")
        status, said = finish(start(run))
        assert status == 0 and "outlived by" not in said, said  # by threads, which may abort Python's exit
        ALONE[kind] = state(run)
    return ALONE[kind]


def assert_survives(make_run, kind, expected=None, **fault):
    """Strike a run, type the same command again, and compare."""
    run = make_run(kind, "hurt")
    began = time.monotonic()
    status, said = finish(start(run, **fault))
    assert status != 0 and run.result() is None, said
    assert expected is None or expected in said
    end = time.monotonic() + 10
    while orphans(run) and time.monotonic() < end:
        time.sleep(0.1)
    assert not orphans(run)
    status, said = finish(start(run))
    assert status == 0, said
    assert state(run) == undisturbed(make_run, kind)
    return time.monotonic() - began


@pytest.mark.rounds(50)
@pytest.mark.parametrize("kind", [pytest.param("teacher", marks=pytest.mark.faults), "student"])
def test_a_rank_killed_at_any_step(make_run, kind, number):
    draw = random.Random(number)
    rank, at = draw.randrange(2), draw.randrange(1, STEPS)
    assert_survives(
        make_run, kind, f"rank {rank} was ended by SIGKILL", rank=rank, moment="step", at=at, how="kill"
    )


MOMENTS = ["written"] + [
    pytest.param(moment, marks=pytest.mark.faults)
    for moment in ("copied", "opened", "digested", "described", "renamed", "dropping")
]


@pytest.mark.rounds(8)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_inside_a_save(make_run, moment, number):
    at = number % 4 if moment != "described" else 1 + number % 4  # of 6 saves; the third drops the first
    run = make_run("teacher", "hurt")
    status, said = finish(start(run, rank=0, moment=moment, at=at, how="kill"))
    assert status != 0, said
    found = checkpoint.latest(run.directory)  # raises if what stands there is not valid
    assert found is None or found.step % EVERY == 0
    assert found is not None or (at == 0 and moment != "dropping") or moment == "described"
    status, said = finish(start(run))
    assert status == 0, said
    assert state(run) == undisturbed(make_run, "teacher")


@pytest.mark.faults
@pytest.mark.rounds(40)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(make_run, number):
    draw = random.Random(number)
    run = make_run("teacher", "hurt")
    status, said = finish(start(run, rank=0, moment="step", at=draw.randrange(8, STEPS), how="kill"))
    newest = checkpoint.latest(run.directory)
    assert status != 0 and newest.step >= 4, said
    file = newest.path / draw.choice(["state.pt", "manifest.json"])
    content, place = bytearray(file.read_bytes()), draw.randrange(file.stat().st_size * 9 // 10)
    match number % 3:
        case 0:
            content[place] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
        case 1:
            file.write_bytes(content[:place])
        case 2:
            file.unlink()
    assert checkpoint.latest(run.directory).step == newest.step - EVERY
    status, said = finish(start(run))
    assert status == 0, said
    assert state(run) == undisturbed(make_run, "teacher")


@pytest.mark.faults
@pytest.mark.rounds(20)
def test_killed_between_critic_and_student(make_run, number):
    draw = random.Random(number)
    assert_survives(
        make_run, "student", rank=draw.randrange(2), moment="between", at=draw.randrange(STEPS), how="kill"
    )


def test_one_ulp_of_drift_is_caught_at_the_next_checkpoint(make_run):
    run = make_run("teacher", "hurt")
    status, said = finish(start(run, rank=1, moment="weights", at=5, how="drift"))
    assert status != 0 and "teacher, step 6: the two ranks drifted apart" in said, said
    assert checkpoint.latest(run.directory).step == 4
    assert finish(start(run))[0] == 0 and state(run) == undisturbed(make_run, "teacher")


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which root may")
def test_a_full_disk(make_run, tmp_path):
    small = tmp_path / "hurt"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], check=True)
    try:
        run = make_run("teacher", "hurt")
        status, said = finish(start(run))
        if status == 0:
            pytest.fail("the file system was meant to be too small")
        assert "could not be written: No space left on device" in said
        assert not list(run.directory.rglob("*.part"))
        checkpoint.latest(run.directory)
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        status, said = finish(start(run))
        assert status == 0, said
        assert state(run) == undisturbed(make_run, "teacher")
    finally:
        subprocess.run(["umount", small], check=True)
