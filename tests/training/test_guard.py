"""A distillation that goes wrong is stopped, by name, before its weights take the step."""

import math

import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.handle import Handle
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.guard import Guard, GuardSettings
from qdm_pipeline.training.loop import train
from qdm_pipeline.training.statistics import LatentSums, Statistics

BOUNDS = dict(
    then="stop", most_mean=2.0, most_std=3.0, least_std=0.3, least_diversity=0.3, least_perplexity=0.6,
    patience=3,
)  # fmt: skip
REAL = Statistics(mean=0.0, std=2.0, diversity=1.0, perplexity=10.0, utilization=1.0)


def shrink(task):
    with torch.no_grad():
        for parameter in task.dmd.student.final_proj.parameters():
            parameter.mul_(0.01)


def grow(task):
    with torch.no_grad():
        task.dmd.student.final_proj.weight.mul_(100)


def shift(task):
    with torch.no_grad():
        task.dmd.student.final_proj.bias.add_(3)


def forget_the_noise(task):
    with torch.no_grad():
        task.dmd.student.patch_in.weight.zero_()


def kill_codes(task):
    quantizer = task.dmd.student.quantizer
    quantizer.codebook[:, 1:] += 100


def break_a_weight(task):
    with torch.no_grad():
        task.dmd.student.blocks[0].mlp_in.weight[0, 0] = math.nan


FAULTS = {
    "collapse: std": shrink,
    "saturation: deviation": grow,
    "drift: mean": shift,
    "collapse: diversity": forget_the_noise,
    "dead codebook: perplexity": kill_codes,
    "not finite": break_a_weight,
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_within_five_updates_and_the_last_checkpoint_is_good(
    name, make_distill, tmp_path
):
    path = "quantized" if "codebook" in name else "continuous"
    task = make_distill(
        batch=16,
        micro_batch=16,
        steps=12,
        checkpoint={"every": 1, "keep_last": 2, "keep_every": None},
        critic_updates=1,
        dmd={"path": path},
        guard=BOUNDS,
    )
    run = Run.create("student", {}, {"teacher": Handle("teacher", tmp_path, "t")}, tmp_path / "runs")
    train_step, injected = task.train_step, 4

    def step(number):
        if number == injected:
            FAULTS[name](task)
        return train_step(number)

    task.train_step = step
    with pytest.raises(DivergenceError, match=f"update [4-8]: .*{name}"):
        train(task, run, Ranks())
    found = checkpoint.latest(run.directory)
    assert found is not None and found.step >= injected - 1 and run.result() is None
    state = checkpoint.load(found)
    assert state["broken"] == 0 and all(value.isfinite().all() for value in state["student"].values())


def test_a_bound_may_be_broken_for_a_while_and_from_below_it_is_the_steps_own():
    means = REAL._replace(std=0.4, diversity=0.1, perplexity=4.0)  # what a first step begins with
    guard = Guard(build(GuardSettings, BOUNDS), REAL, [means, REAL])
    assert guard.check(0, 0, means, 1.0)["student/latent_std"] == 0.2
    bad = REAL._replace(std=8.0)
    for found in (bad, bad, REAL, bad, means):
        guard.check(0, 1, found, 1.0)
    with pytest.raises(
        DivergenceError, match="update 7: collapse: std 0.4, 2 at the start, at least 0.3 of that"
    ):
        guard.check(7, 1, means, 1.0)
    with pytest.raises(DivergenceError, match="update 8: not finite: loss"):
        guard.check(8, 1, REAL, math.nan)


def test_statistics_are_those_of_the_whole_set_however_it_is_split(make_distill):
    task, draw = make_distill(), torch.Generator().manual_seed(0)
    x = 1 + 2 * torch.randn(60, 3, 1, 2, 2, generator=draw)
    labels = torch.arange(60) % 2
    x[labels == 1] += 5  # a difference between labels is no diversity
    codes = torch.randint(16, (60, 2, 1, 2, 2), generator=draw)
    found = []
    for size in (60, 7):
        sums = LatentSums(task.config, [(3, 1, 2, 2)], Ranks())
        for part in torch.arange(60).split(size):
            sums.add(x[part], labels[part], codes[part])
        found.append(sums.take())
    assert found[0] == pytest.approx(found[1])
    assert found[0].std == pytest.approx(float(x.std(correction=0)), rel=1e-6)
    assert found[0].mean == pytest.approx(float(x.mean()), rel=1e-6)
    assert found[0].diversity == pytest.approx(2.0, rel=0.1) and found[0].utilization == 1.0
    few = LatentSums(task.config, [(3, 1, 2, 2)], Ranks())
    few.add(x[:2], labels[:2], None)
    assert few.take()[2:] == (None, None, None)
