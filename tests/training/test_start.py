"""The student's start: what it is taught, that it learns it, and that distillation goes on from there."""

import copy

import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.diffusion.sampler import ddim
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.start import StartJob, StartTask
from qdm_pipeline.training.trajectories import Trajectories

TIMES = (1.0, 0.5)


@pytest.fixture
def make_start(make_teacher, make_trajectories, distill_settings, tmp_path):
    exported = tmp_path / "started_from"
    exported.mkdir()
    make_teacher().export(exported)

    def make(ranks=None, path="quantized", count=8, **changes):
        start = distill_settings({})["start"] | {"steps": 60} | changes
        parallel = dict(strategy="ddp", offload_teacher=False, compile=False)
        job = dict(start=start, times=TIMES, path=path, renoising="kept", precision="fp32", seed=0)
        settings = build(StartJob, job | {"recompute": "nothing", "parallel": parallel})
        return StartTask(settings, exported, make_trajectories(TIMES, "kept", count), ranks or Ranks())

    return make


@pytest.mark.parametrize("name", ["flow", "cosine", "linear"])
def test_one_step_with_the_target_ends_where_many_steps_of_the_teacher_end(name):
    # A teacher whose answer depends on x and t, so that its trajectory bends.
    schedule, x = Schedule(name), torch.randn(5, 3, dtype=torch.float64)
    seen = {}

    def teacher(x_t, t):
        seen[float(t[0])] = x_t
        return torch.tanh(x_t) * (1 - t[:, None] / 2)

    times = (0.95, 0.8, 0.65, 0.5, 0.3, 0.1)
    end = ddim(teacher, x, times, schedule, torch.Generator())
    stops = [(0.95, seen[0.95]), (0.5, seen[0.5])]
    targets = [
        schedule.x0_between(stops[0][1], torch.full((5,), 0.95), stops[1][1], torch.full((5,), 0.5)),
        end,
    ]
    calls = iter(targets)
    assert torch.allclose(ddim(lambda x_t, t: next(calls), x, (0.95, 0.5), schedule, torch.Generator()), end)
    calls = iter([targets[0], torch.zeros(5, 3)])
    reached = {}
    ddim(lambda x_t, t: (reached.update({float(t[0]): x_t}), next(calls))[1], x, (0.95, 0.5), schedule, None)
    assert torch.allclose(reached[0.5], seen[0.5], atol=1e-10)


def test_targets_follow_the_students_own_sampler(make_trajectories):
    # On straight lines of a flow the sample is what every step should answer, with either sampler.
    for renoising in ("kept", "fresh"):
        known = make_trajectories(TIMES, renoising)
        sample = known.inputs[:, 0] + 3
        assert torch.allclose(known.targets, sample[:, None].expand_as(known.inputs), atol=1e-5)
    x_t, target, condition = known.at(torch.tensor([3, 1]), torch.tensor([1, 0]), torch.device("cpu"))
    assert torch.equal(x_t[0], known.inputs[3, 1]) and torch.equal(x_t[1], known.inputs[1, 0])
    assert torch.equal(target, sample[[3, 1]]) and condition.label.tolist() == [1, 1]


def test_trajectories_of_other_steps_are_refused(make_trajectories, tmp_path):
    make_trajectories(TIMES, "kept")
    with pytest.raises(InputError, match=r"kept at 2 times, but the student has 3 steps"):
        Trajectories(tmp_path / "trajectories", (1.0, 0.6, 0.3), "kept", Schedule("flow"))


@pytest.mark.parametrize("path", ["continuous", "quantized"])
def test_it_learns_the_trajectories(make_start, path):
    task = make_start(path=path)
    errors = [float(task.train_step(step)["error"]) for step in range(60)]
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])


def test_an_error_of_trajectories_not_learnt_from_is_told(make_start):
    task = make_start(count=33, log_every=3)
    rows = task.held_out
    assert rows.tolist() == [31, 32] and not set(rows.tolist()) & set(task.batches.rows(range(60)).tolist())
    logged = [task.train_step(step) for step in range(6)]
    assert [step for step, metrics in enumerate(logged) if "error_held_out" in metrics] == [2, 5]
    x_t, target, condition = task.trajectories.at(rows, torch.tensor([1, 0]), torch.device("cpu"))
    answer = task.student(x_t, torch.tensor([0.5, 1.0]), condition, "quantized")
    assert float(logged[5]["error_held_out"]) == pytest.approx(
        float((answer.x0 - target).square().mean().detach())
    )
    assert "error_held_out" not in make_start(count=15, log_every=1).train_step(0)


def test_a_resumed_start_is_the_uninterrupted_one(make_start):
    whole, first, second = make_start(), make_start(), make_start()
    for step in range(4):
        whole.train_step(step)
    for step in range(2):
        first.train_step(step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.train_step(step)
    for name, value in whole.ema.shadow.items():
        assert torch.equal(value, second.ema.shadow[name])


def test_distillation_goes_on_from_it(make_start, make_distill, tmp_path):
    task = make_start()
    task.train_step(0)
    directory = tmp_path / "started"
    task.export(directory)
    started, config = load_predictor(directory)
    assert config["times"] == [1.0, 0.5] and config["sampler"] == "ddim" and config["path"] == "quantized"
    distilled = make_distill(start=directory, dmd={"renoising": "kept"})
    student = distilled.dmd.student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in started.state_dict().items())
    teacher = distilled.dmd.teacher.state_dict()
    assert not torch.equal(teacher["patch_in.weight"], student["patch_in.weight"])
    assert torch.equal(teacher["patch_in.weight"], distilled.dmd.fake_score.state_dict()["patch_in.weight"])
