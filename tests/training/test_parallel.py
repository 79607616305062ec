"""One process, DDP and FSDP2 train the same model; a checkpoint goes on in any of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.teacher import TeacherSettings

SITE = str(Path(__file__).parent / "faults" / "site")
PROGRAM = (
    "import sys; from pathlib import Path; from qdm_pipeline.launch.agent import run_job; "
    "from qdm_pipeline.run import Run; run_job(Run.read(Path(sys.argv[1])), int(sys.argv[2]))"
)
STEPS = 20


@pytest.fixture
def make_run(latents, teacher_settings, distill_settings, make_teacher, tmp_path):
    (tmp_path / "teacher").mkdir()
    make_teacher().export(tmp_path / "teacher")

    def make(kind, strategy, folder, **changes):
        parallel = {"strategy": strategy, "offload_teacher": strategy == "fsdp", "compile": False}
        common = dict(
            batch=8, micro_batch=2, steps=STEPS, parallel=parallel,
            checkpoint={"every": 5, "keep_last": 2, "keep_every": None},
        )  # fmt: skip
        common |= changes
        inputs = {"latents": Handle("latents", latents.directory, "l")}
        if kind == "teacher":
            # a codebook of few, far codes: choices near a border would turn rounding into jumps
            settings = build(TeacherSettings, teacher_settings | common)
        else:
            options = {"gan": {"student_weight": 0.1, "r1_weight": 1.0}, "denoising_weight": 0.1}
            settings = build(DistillSettings, distill_settings(options | {"path": "continuous"}, **common))
            inputs |= {"teacher": Handle("teacher", tmp_path / "teacher", "t")}
        return Run.create(kind, settings, inputs, tmp_path / folder)

    return make


def train(run, world, fault=None):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([SITE, os.environ.get("PYTHONPATH", "")])}
    if fault:
        environment["QDM_FAULT"] = fault
    arguments = [sys.executable, "-c", PROGRAM, str(run.file), str(world)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


def assert_alike(run, reference):
    ours, theirs = run.metrics(), reference.metrics()
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(1, STEPS + 1))
    for row, expected in zip(ours, theirs, strict=True):
        for name in expected:
            if "loss" in name or name.startswith("critic/"):
                assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), (row["step"], name)
    weights, others = (load_file(made.directory / "model.safetensors") for made in (run, reference))
    for name, value in weights.items():
        assert torch.allclose(value, others[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_one_process_ddp_and_fsdp_train_the_same_model(make_run, kind):
    alone = make_run(kind, "ddp", "alone")
    assert train(alone, 1).returncode == 0
    for strategy in ("ddp", "fsdp"):
        run = make_run(kind, strategy, strategy)
        done = train(run, 2)
        assert done.returncode == 0, done.stderr
        assert_alike(run, alone)


def test_two_ranks_then_one_then_two_make_one_training(make_run):
    whole, changed = make_run("teacher", "fsdp", "whole"), make_run("teacher", "fsdp", "changed")
    assert train(whole, 2).returncode == 0
    for world, at, reached in ((2, 7, 5), (1, 13, 10)):
        fault = f'{{"rank": 0, "moment": "step", "at": {at}, "how": "raise"}}'
        assert train(changed, world, fault).returncode != 0
        assert checkpoint.latest(changed.directory).step == reached
    assert train(changed, 2).returncode == 0
    assert_alike(changed, whole)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("teacher", "fsdp"),
        *(pytest.param(*way, marks=pytest.mark.faults) for way in (("teacher", "ddp"), ("student", "fsdp"))),
    ],
)
def test_an_overflow_on_one_rank_is_skipped_by_all(make_run, kind, strategy):
    # what ranks hold, scales included, is compared before every checkpoint
    run = make_run(kind, strategy, strategy, precision="fp16", steps=12)
    at = 6 if kind == "teacher" else 4 * 6 + 3  # three updates of the critic come before one of the student
    done = train(run, 2, f'{{"rank": 1, "moment": "update", "at": {at}, "how": "overflow"}}')
    assert done.returncode == 0, done.stderr
    prefix = "" if kind == "teacher" else "student/"
    rows = run.metrics()
    scales = [row[f"{prefix}loss_scale"] for row in rows]
    assert f"{prefix}gradient_norm" not in rows[6] and scales[6] == scales[5] / 2
    assert len(rows) == 12 and f"{prefix}gradient_norm" in rows[7]
