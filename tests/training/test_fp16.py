"""float16: the curves of float32, and overflows that move nothing but the scale."""

import copy
import io
import math

import pytest
import torch

from qdm_pipeline import loss_scale
from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.loop import train

START = 2.0**10  # at which nothing overflows by itself


@pytest.fixture(autouse=True)
def low_start(monkeypatch):
    monkeypatch.setattr(loss_scale, "START", START)


@pytest.fixture
def make(make_teacher, make_distill):
    """A teacher, or a distillation with all its losses, of 20 steps."""

    def make(kind, precision="fp16", **dmd):
        common = {"precision": precision, "micro_batch": 2, "steps": 20}
        if kind == "teacher":
            return make_teacher(**common)
        dmd = {"codebook": "ema", "denoising_weight": 0.1} | dmd
        gan = {"student_weight": 0.1, "r1_weight": 1.0}
        return make_distill(dmd=dmd, gan=gan, critic_updates=1, **common)

    return make


def overflow(task, kind, at):
    """Give ``task`` a gradient that is infinite in update ``at``; weights stay finite, and so do losses."""
    optimizer = {"teacher": "optimizer", "student": "student_optimizer", "critic": "critic_optimizer"}[kind]
    step = getattr(task, optimizer).step

    def struck(update):
        if update in at:
            getattr(task, optimizer).parameters[0].grad.view(-1)[0] = math.inf
        return step(update)

    getattr(task, optimizer).step = struck
    return task


def same(a, b):
    leaves = [torch.utils._pytree.tree_leaves(each) for each in (a, b)]
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(*leaves, strict=True)
    )


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_losses_follow_those_of_float32(kind, make):
    names = {"teacher": ["loss/total", "gradient_norm"], "student": ["critic/total", "student/score_gap"]}
    smooth = {"path": "continuous", "codebook": "still"}  # choices of codes turn rounding into jumps
    rows = [
        [[float(metrics[name]) for name in names[kind]] for metrics in map(task.train_step, range(20))]
        for task in (make(kind, "fp32", **smooth), make(kind, **smooth))
    ]
    a, b = (torch.tensor(row) for row in rows)
    assert not torch.equal(a, b)  # float16 was at work
    torch.testing.assert_close(a, b, rtol=0.02, atol=1e-3)


def test_weights_and_gradients_stay_float32(make):
    task = make("teacher")
    task.train_step(0)
    kept = torch.utils._pytree.tree_leaves(task.state_dict())
    assert {x.dtype for x in kept if torch.is_tensor(x) and x.dtype.is_floating_point} == {
        torch.float32,
        torch.float64,  # the scale
    }


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_an_overflow_leaves_all_that_learns_as_it_was(kind, make):
    task = overflow(make(kind), kind, {3})
    for step in range(3):
        task.train_step(step)
    before = copy.deepcopy(task.state_dict())
    metrics = task.train_step(3)
    after, prefix = copy.deepcopy(task.state_dict()), "" if kind == "teacher" else "student/"
    assert metrics[f"{prefix}loss_scale"] == START / 2 and f"{prefix}gradient_norm" not in metrics
    for name in ("model", "student", "ema"):
        assert name not in before or same(before[name], after[name]), name
    optimizer = "optimizer" if kind == "teacher" else "student_optimizer"
    assert same(before[optimizer]["0"]["state"], after[optimizer]["0"]["state"])
    model = task.model if kind == "teacher" else task.dmd.student
    assert not model.quantizer.pending.any() and not model.quantizer._seen
    task.train_step(4)
    assert not same(after["ema"], task.state_dict()["ema"])


@pytest.mark.parametrize("kind", ["teacher", "student", "critic"])
def test_a_resumed_run_goes_on_with_scale_and_count(kind, make, monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    made = "teacher" if kind == "teacher" else "student"
    whole, first, second = (overflow(make(made), kind, {1, 4}) for _ in range(3))
    for step in range(7):
        whole.train_step(step)
    for step in range(3):
        first.train_step(step)
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    second.load_state_dict(torch.load(stream, weights_only=True))
    for step in range(3, 7):
        second.train_step(step)
    assert same(whole.state_dict(), second.state_dict())


def test_gradients_that_overflow_at_any_scale_end_the_run(make, tmp_path):
    task, run = overflow(make("teacher"), "teacher", range(20)), Run.create("teacher", {}, {}, tmp_path)
    with pytest.raises(DivergenceError, match=r"teacher, update 10: .* overflow at a loss scale of 1 too"):
        train(task, run, Ranks())
    assert checkpoint.latest(run.directory).step == 10
    assert [row["loss_scale"] for row in run.metrics()] == [START / 2 ** (step + 1) for step in range(10)]


@pytest.mark.parametrize("kind", ["teacher", "distill"])
def test_a_clip_that_is_not_finite_is_named_at_once(kind, request, tmp_path):
    options = {"precision": "fp16"} | ({} if kind == "teacher" else {"dmd": {"denoising_weight": 1.0}})
    task = request.getfixturevalue(f"make_{kind}")(**options)
    gather = task.latents.gather

    def poisoned(field, rows):
        values = gather(field, rows).clone()
        values[rows == 7] = torch.nan
        return values

    task.latents.gather = poisoned
    with pytest.raises(DivergenceError, match=r"not finite.*loss not finite on rank 0.*in clip 7$"):
        train(task, Run.create(kind, {}, {}, tmp_path / "runs"), Ranks())
