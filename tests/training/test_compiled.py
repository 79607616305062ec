"""Compiled blocks train the same model, and keep less for backward where pointwise steps are recomputed."""

from types import SimpleNamespace

import pytest
import torch
import torch._functorch.config
from torch import nn

from qdm_pipeline.configuration import build
from qdm_pipeline.models.transformer import TransformerBlock
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.parallelize import ParallelSettings, spread
from qdm_pipeline.training.teacher import TeacherSettings, TeacherTask


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """All of torch.compile but the part that needs a C++ compiler."""
    torch.compiler.reset()
    backend = "aot_eager_decomp_partition"
    monkeypatch.setattr(TransformerBlock, "compile", lambda block: nn.Module.compile(block, backend=backend))
    with torch._functorch.config.patch(activation_memory_budget=1.0):
        yield


def train(latents, teacher_settings, compile, recompute):
    """Losses of three steps and the bytes kept for backward in the last."""
    parallel = dict(strategy="ddp", offload_teacher=False, compile=compile)
    changes = dict(parallel=parallel, recompute=recompute, steps=3)
    task = TeacherTask(build(TeacherSettings, teacher_settings | changes), latents, Ranks())
    losses, kept = [], {}
    for step in range(3):
        kept.clear()

        def keep(value):
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            losses.append(float(task.train_step(step)["loss/total"]))
    return losses, sum(kept.values())


def test_compiled_blocks_learn_as_others_do_and_pointwise_takes_less_memory(latents, teacher_settings):
    eager, _ = train(latents, teacher_settings, compile=False, recompute="nothing")
    compiled, most = train(latents, teacher_settings, compile=True, recompute="nothing")
    lean, least = train(latents, teacher_settings, compile=True, recompute="pointwise")
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert lean == pytest.approx(eager, rel=1e-5)
    assert least < 0.95 * most


def test_no_form_of_a_block_goes_uncompiled(monkeypatch):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(TransformerBlock, "compile", lambda block: nn.Module.compile(block, backend=backend))
    parallel = ParallelSettings(strategy="ddp", offload_teacher=False, compile=True)
    widths = range(8, 80, 8)  # 9, where torch by itself stops after 8
    for width in widths:
        block = TransformerBlock(width, width // 8, cross_attention=False)
        spread(SimpleNamespace(blocks=[block]), parallel, Ranks(), "fp32")
        with torch.no_grad():
            block(
                torch.ones(1, 2, width),
                1,
                torch.ones(1, 6, width),
                (torch.ones(2, 4), torch.ones(2, 4)),
                None,
                None,
            )
    assert len(compiled) == len(widths)
