"""Training on a GPU: the CPU's losses, exact resume, every precision; `make test-gpu` runs these."""

import copy

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.worker import compute_exactly
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.teacher import TeacherSettings

GPU = Ranks(device=torch.device("cuda", 0))
EVERYTHING = {
    "gan": {"student_weight": 0.1, "r1_weight": 1.0},
    "dmd": {"codebook": "ema", "denoising_weight": 0.1},
    "micro_batch": 2,
}
KINDS = [("teacher", {}), ("teacher", {"recompute": "blocks"}), ("distill", {}), ("distill", EVERYTHING)]


@pytest.fixture(autouse=True)
def _as_a_worker_does():
    compute_exactly()


def losses(task, steps):
    found = [task.train_step(step) for step in steps]
    return [{name: float(value) for name, value in metrics.items() if "loss" in name} for metrics in found]


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_losses_are_those_of_the_cpu(kind, options, request):
    make = request.getfixturevalue(f"make_{kind}")
    found, known = losses(make(ranks=GPU, **options), range(3)), losses(make(**options), range(3))
    for ours, theirs in zip(found, known, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind, options, precision, request):
    make = request.getfixturevalue(f"make_{kind}")
    whole, first, second = (make(ranks=GPU, precision=precision, **options) for _ in range(3))
    for step in range(4):
        whole.train_step(step)
    for step in range(2):
        first.train_step(step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.train_step(step)
    assert_same(whole.state_dict(), second.state_dict())


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            assert_same(value, b[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value.cpu(), b[name].cpu()), name


def test_compiled_blocks_give_the_same_losses(make_teacher):
    compiled = {"strategy": "ddp", "offload_teacher": False, "compile": True}
    found = losses(make_teacher(ranks=GPU, parallel=compiled), range(3))
    for ours, theirs in zip(found, losses(make_teacher(ranks=GPU), range(3)), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)


def test_the_agent_starts_a_worker_on_the_gpu_and_ends_in_peace(latents, teacher_settings, tmp_path):
    inputs = {"latents": Handle("latents", latents.directory, latents.digest)}
    run = Run.create(
        "teacher", build(TeacherSettings, teacher_settings | {"micro_batch": 1}), inputs, tmp_path
    )
    assert run_job(run, "auto") == run.result()


def test_batches_travel_through_pinned_memory():
    batch = torch.randn(1000, 100)
    assert torch.equal(GPU.onto(batch).cpu(), batch)
