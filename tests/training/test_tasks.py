"""Teacher and distillation as tasks: exact resume, accumulation, ratio of updates, golden loops."""

import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.loss_scale import Update
from qdm_pipeline.randomness import Batches
from qdm_pipeline.training.model_files import load_predictor

LEAF = torch.zeros((), requires_grad=True)
ALIKE = torch.zeros(10, dtype=torch.int64)  # the sizes of ten rows


def flatten(state):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", item) for name, item in flatten(value))
        elif isinstance(value, torch.Tensor):
            yield key, value


def assert_same(a, b):
    a, b = dict(flatten(a)), dict(flatten(b))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


EVERYTHING = {
    "gan": {"student_weight": 0.1, "r1_weight": 1.0},
    "dmd": {"codebook": "ema", "denoising_weight": 0.1},
    "batch": 4,
    "micro_batch": 2,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("teacher", {}),
        ("distill", {}),
        ("distill", EVERYTHING),
        ("distill", {"dmd": {"codebook": "trained"}}),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind, options, request):
    def make():
        return request.getfixturevalue(f"make_{kind}")(**options)

    whole, first, second = make(), make(), make()
    for step in range(4):
        whole.train_step(step)
    for step in range(2):
        first.train_step(step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.train_step(step)
    assert_same(whole.state_dict(), second.state_dict())


def test_accumulation_gives_the_gradient_of_the_whole_batch(make_teacher):
    # Nothing but the gradient may differ, so: no dropout of conditions and the same noise for both.
    whole, parts = make_teacher(condition_dropout=0.0), make_teacher(condition_dropout=0.0)
    x0, noise, t = whole.latents.gather("latent", whole.rows[:8]), torch.randn(8, 3, 1, 2, 2), torch.rand(8)
    whole.loss(x0, noise, t, whole.condition.rows(slice(0, 8))).continuous.backward()
    for part in (slice(0, 4), slice(4, 8)):
        (parts.loss(x0[part], noise[part], t[part], parts.condition.rows(part)).continuous / 2).backward()
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_critic_and_student_updates_keep_their_ratio(make_distill, accumulation):
    task, seen = make_distill(batch=2 * accumulation, micro_batch=2), Counter()
    for name in ("student_optimizer", "critic_optimizer"):
        optimizer = getattr(task, name)
        step = optimizer.step
        optimizer.step = lambda update, name=name, step=step: seen.update([name]) or step(update)
    for step in range(4):
        task.train_step(step)
    assert seen == {"student_optimizer": 4, "critic_optimizer": 12}


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_500_critic_updates_for_100_of_the_student_also_across_a_resume(make_distill, accumulation, warmup):
    # What they learn from does not matter here: updates are counted where an optimizer would make them.
    seen = []

    def make():
        task = make_distill(
            batch=accumulation, micro_batch=1, critic_updates=5, critic_warmup=warmup, steps=100
        )
        task.critic_optimizer.step = lambda update: seen.append(("critic", update)) or Update(True, {})
        task.student_optimizer.step = lambda update: seen.append(("student", update)) or 0.0
        task.dmd.critic_loss = lambda draw: SimpleNamespace(total=LEAF, _asdict=dict)
        task._student_update = lambda step: {"norm": task.student_optimizer.step(step)}
        return task

    first, second = make(), make()
    for step in range(37):
        first.train_step(step)
    second.load_state_dict(first.state_dict())
    for step in range(37, 100):
        second.train_step(step)
    assert [update for name, update in seen if name == "critic"] == list(range(warmup + 500))
    assert seen[: warmup + 6] == [("critic", n) for n in range(warmup + 5)] + [("student", 0)]
    assert [update for name, update in seen if name == "student"] == list(range(100))


def test_the_average_moves_on_student_updates_only(make_distill):
    task = make_distill()
    before = copy.deepcopy(task.ema.shadow)
    task._critic_update(0)
    assert_same(task.ema.shadow, before)
    task._student_update(0)
    assert any(not torch.equal(task.ema.shadow[name], before[name]) for name in before)


def test_distillation_has_a_shift_of_its_own(make_distill):
    def times(shift, purpose):
        task = make_distill(dmd={"shift": shift})
        return task._draw(0, next(iter(task.batches.of(0))), purpose).t

    for purpose in ("student", "critic"):
        plain = times(1.0, purpose)
        assert torch.allclose(times(3.0, purpose), 3 * plain / (1 + 2 * plain))


def test_distillation_leaves_teacher_and_codebook_alone(make_distill):
    task = make_distill()
    before = copy.deepcopy(task.dmd.teacher.state_dict())
    for step in range(2):
        task.train_step(step)
    assert_same(task.dmd.teacher.state_dict(), before)
    assert torch.equal(task.dmd.student.quantizer.codebook, before["quantizer.codebook"])
    assert not torch.equal(task.dmd.student.final_proj.weight, before["final_proj.weight"])


def test_teacher_learns(make_teacher):
    task = make_teacher(steps=200, quantization_weight=0.0)
    losses = [float(task.train_step(step)["loss/continuous"]) for step in range(200)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_zero_quantization_weight_trains_the_same_model_whatever_the_codebook(make_teacher, tiny_model):
    other = tiny_model | {"quantizer": tiny_model["quantizer"] | {"decay": 0.5, "revival_threshold": 0.0}}
    tasks = [make_teacher(quantization_weight=0.0, model=model) for model in (tiny_model, other)]
    for step in range(3):
        losses = [task.train_step(step)["loss/total"] for task in tasks]
        assert torch.equal(*losses)


def test_export_loads_and_answers_like_the_average(make_teacher, tmp_path):
    task = make_teacher()
    task.train_step(0)
    task.export(tmp_path)
    model, config = load_predictor(tmp_path)
    task.model.load_state_dict(task.ema.weights(task.model))
    assert_same(model.state_dict(), task.model.state_dict())
    assert config["latent_shape"] == [3, 1, 2, 2] and model.config == task.config


@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_a_batch_are_the_batch_of_one_rank(world):
    [whole] = [Batches(ALIKE, 8, 2, 0, 0, 1).of(3)]
    shares = [micro for rank in range(world) for micro in Batches(ALIKE, 8, 2, 0, rank, world).of(3)]
    assert [micro.number for micro in shares] == [micro.number for micro in whole] == [0, 1, 2, 3]
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(shares, whole, strict=True))


def test_an_epoch_visits_every_row_once():
    assert sorted(Batches(ALIKE, 5, 5, 0, 0, 1).rows(range(2)).tolist()) == list(range(10))


def test_micro_batches_are_of_one_size_and_sizes_pass_their_epochs_alike():
    size_of = torch.tensor([0] * 40 + [2] * 7 + [0] * 20 + [1] * 13)
    batches = Batches(size_of, 8, 4, 0, 0, 1)
    seen, kinds = Counter(), []
    for step in range(30):
        for micro in batches.of(step):
            [kind] = size_of[micro.rows].unique().tolist()
            kinds.append(kind)
            seen.update(micro.rows.tolist())
    assert len(kinds) == 60 and 240 == 3 * len(size_of)
    visits = torch.tensor([seen[row] for row in range(80)])
    # three epochs are 45 whole micro-batches, 9 and 5; the sixtieth is of the fourth epoch
    assert [int(visits[size_of == size].sum()) for size in (0, 1, 2)] == [180, 40, 20]
    assert all(visits[size_of == size].max() - visits[size_of == size].min() <= 1 for size in (0, 1, 2))
    assert kinds[:15] != sorted(kinds[:15])  # mixed
    alone = [micro.rows for micro in batches.of(29)]
    again = [Batches(size_of, 8, 4, 0, rank, 2).of(29)[0].rows for rank in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


def test_ranks_that_cannot_share_a_batch_are_refused():
    with pytest.raises(
        InputError, match=r"world_size: found 3, .* 4 micro-batches of 2.* allowed are 1, 2, 4"
    ):
        Batches(ALIKE, 8, 2, 0, 0, 3)


@pytest.mark.parametrize(("kind", "codes"), [("fsq", 25), ("lfq", 4), ("bsq", 4)])
def test_a_teacher_with_another_quantizer_trains_and_is_exported(
    make_teacher, tiny_model, tmp_path, kind, codes
):
    quantizer = tiny_model["quantizer"] | {"kind": kind, "codebook_size": codes}
    task = make_teacher(model=tiny_model | {"quantizer": quantizer})
    assert torch.isfinite(task.train_step(0)["loss/total"])
    assert task.train_step(1)["codebook/tokens"] == 16  # 4 samples of 4 positions
    assert task.export(tmp_path)["flops_per_clip"] > 0
    loaded, _ = load_predictor(tmp_path)
    assert torch.equal(loaded.quantizer.codebook, task.model.quantizer.codebook)
