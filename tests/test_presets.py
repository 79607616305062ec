"""Every preset builds, its row in the README is what it costs, and at reduced size it trains and samples."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from benchmarks.presets import ROOT, SIZES, sizes

from qdm_pipeline.diffusion.sampler import renoise
from qdm_pipeline.estimate import shapes
from qdm_pipeline.presets import PRESETS, parameters, row
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.distill import DistillTask
from qdm_pipeline.training.teacher import TeacherTask
from qdm_pipeline.video.shards import write_shards

NAMED = {  # codes, width, layers
    "small": (4096, 512, 6), "medium": (8192, 1024, 12), "large": (16384, 2048, 24),
    "dmd_optimized": (8192, 1024, 12),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_table_of_the_readme_is_computed(name):
    line = f"| {' | '.join(row(ROOT, name))} |"
    print(line)
    for readme in ("README.md", "README.zh-CN.md"):
        assert line in (ROOT / readme).read_text(), f"{readme} lacks:\n{line}"


def test_sizes_for_machines_without_kedro_are_those_of_the_presets():
    assert json.loads(SIZES.read_text()) == json.loads(json.dumps(sizes())), (
        "run python -m benchmarks.presets"
    )


def test_the_gpu_benchmark_runs_where_only_torch_is(tmp_path):
    """At toy size on the CPU, and with everything hidden that a bare machine with a GPU does not have."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(['kedro', 'mlflow', 'pydantic', 'av', 'yaml']));"
    code = f"{hidden} sys.argv = ['gpu', '--tiny', 'small']; "
    code += "import runpy; runpy.run_module('benchmarks.gpu', {}, '__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["case"].split()[0] for row in rows] == [
        "search",
        "search",
        "search",
        "search",
        "train",
        "sample",
        "distil",
    ]
    assert all(row["flips_of_512"] == 0 for row in rows[:4])


@pytest.mark.parametrize("name", sorted(NAMED))
def test_presets_have_the_promised_sizes(name):
    config, _ = shapes(parameters(ROOT, name))
    assert (config.size.quantizer.codebook_size, config.size.width, config.size.depth) == NAMED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_distils_and_samples_at_reduced_size(name, tmp_path):
    preset = parameters(ROOT, name)
    _, (channels, frames, _, _) = shapes(preset)
    draw = torch.Generator().manual_seed(0)
    samples = (
        (
            {"latent": torch.randn(channels, frames, 4, 4, generator=draw)},
            {"id": str(i), "label": i % 2, "caption": "", "split": "train"},
        )
        for i in range(8)
    )
    latents = write_shards(tmp_path / "latents", samples, {"classes": ["a", "b"]}, 8)
    small = {"batch": 2, "micro_batch": 2, "precision": "fp32"}
    model = replace(preset["teacher"].model, width=64, depth=2, heads=2)
    teacher = TeacherTask(replace(preset["teacher"], model=model, **small), latents, Ranks())
    metrics = teacher.train_step(0)
    assert torch.isfinite(metrics["loss/quantized"]) and metrics["codebook/replaced"] > 0
    (tmp_path / "teacher").mkdir()
    teacher.export(tmp_path / "teacher")
    distill = DistillTask(
        replace(preset["distill"], critic_updates=1, validation=None, **small),
        tmp_path / "teacher",
        latents,
        Ranks(),
    )
    assert torch.isfinite(distill.train_step(0)["student/loss"])
    denoiser = GuidedDenoiser(distill.dmd.student, distill.condition.rows(slice(0, 2)), 1.0, "quantized")
    with torch.inference_mode():
        noise = torch.randn(2, *latents.shape("latent"), generator=draw)
        sample = renoise(denoiser, noise, preset["distill"].dmd.times, distill.schedule, draw)
        codes = denoiser.tokens()["codes"]
        assert torch.equal(distill.dmd.student.decode_codes(codes), sample)
    assert sample.shape == noise.shape and sample.isfinite().all()
