"""Divergence is traced to ranks and clips, and a single drifting bit is noticed."""

import pytest
import torch

from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import watch
from qdm_pipeline.training.loop import train


class Both(Ranks):
    """Rank 0 of two; what the other one would have said is given."""

    def __init__(self, other):
        super().__init__(0, 2)
        object.__setattr__(self, "other", other)

    def gather(self, value):
        return [value, self.other]


def numbered(state):
    leaves = [tensor for tensor in state.values() if isinstance(tensor, torch.Tensor) and tensor.numel()]
    return torch.stack([watch._fingerprint(tensor) for tensor in leaves])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_one_bit_of_one_rank_is_noticed(kind):
    state = {
        "a": torch.arange(1000).to(kind),
        "empty": torch.zeros(0),
        "note": 3,
        "scalar": torch.tensor(2.0),
    }
    watch.check_replicas("teacher", 4, state, Both(numbered(state)))
    other = state | {"a": state["a"].clone()}
    bytes_of = other["a"].view(torch.uint8)
    bytes_of[700] ^= 1
    with pytest.raises(DivergenceError, match=r"teacher, step 4: the two ranks drifted apart in \['a'\]"):
        watch.check_replicas("teacher", 4, state, Both(numbered(other)))


def test_two_flips_that_cancel_in_a_sum_are_noticed():
    state = {"a": torch.arange(8)}
    other = {"a": torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])}
    with pytest.raises(DivergenceError):
        watch.check_replicas("teacher", 4, state, Both(numbered(other)))


def test_among_more_ranks_the_odd_one_is_named():
    class Three(Both):
        def gather(self, value):
            return [value, self.other, value]

    state, other = {"a": torch.zeros(4)}, {"a": torch.full((4,), 1e-45)}
    with pytest.raises(DivergenceError, match="rank 1 drifted"):
        ranks = Three(numbered(other))
        object.__setattr__(ranks, "world", 3)
        watch.check_replicas("student", 2, state, ranks)


@pytest.mark.parametrize("kind", ["teacher", "distill"])
def test_a_clip_that_is_not_finite_is_named_before_any_weight_moves(kind, request, tmp_path):
    options = {} if kind == "teacher" else {"dmd": {"denoising_weight": 1.0}}
    task = request.getfixturevalue(f"make_{kind}")(**options)
    gather = task.latents.gather

    def poisoned(field, rows):
        values = gather(field, rows).clone()
        values[rows == 7] = torch.nan
        return values

    task.latents.gather = poisoned
    model = task.model if kind == "teacher" else task.dmd.student
    before = {step: None for step in range(6)}
    step_task = task.train_step

    def remembered(step):
        before[step] = {name: value.clone() for name, value in model.state_dict().items()}
        return step_task(step)

    task.train_step = remembered
    run = Run.create(kind, {}, {}, tmp_path / "runs")
    with pytest.raises(DivergenceError, match=r"not finite.*loss not finite on rank 0.*in clip 7$") as caught:
        train(task, run, Ranks())
    reached = max(step for step, weights in before.items() if weights is not None)
    assert f", update {reached}: not finite" in str(caught.value)
    assert all(torch.equal(value, before[reached][name]) for name, value in model.state_dict().items())
    assert run.result() is None


def test_a_loss_that_breaks_on_one_rank_only_names_that_rank():
    task = type("Task", (), {"last_loss": torch.tensor(1.0), "suspects": lambda self, step: []})()
    error = watch.traced(DivergenceError("teacher, update 3: x"), task, 3, Both((True, ["9", "4"])))
    assert str(error) == "teacher, update 3: x; loss not finite on rank 1; values not finite in clip 4, 9"
