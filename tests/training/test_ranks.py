"""Every loss of a distillation on two ranks: no parameter is waited for, and both ranks go on alike."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.run import Run
from qdm_pipeline.training.distill_settings import DistillSettings

OPTIONS = {
    "everything": {"gan": {"student_weight": 0.1, "r1_weight": 1.0}, "denoising_weight": 0.1,
                   "regression_weight": 0.1, "codebook": "ema"},
    "codes": {"matching": "jeffreys"},
    "continuous": {"path": "continuous"},
    "trained": {"codebook": "trained", "renoising": "kept"},
    "soft": {"path": "soft", "inputs": "noised"},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_all_options_train_on_two_ranks(name, distill_settings, latents, make_teacher, tmp_path):
    for folder in ("teacher", "trajectories"):
        (tmp_path / folder).mkdir(exist_ok=True)
    make_teacher().export(tmp_path / "teacher")
    noise = torch.randn(8, 3, 1, 2, 2)
    kept = {
        "latents": 3 + noise,
        "trajectory": torch.stack([noise, 3 + noise], 1),
        "labels": torch.arange(8) % 2,
    }
    save_file(kept, tmp_path / "trajectories/samples.safetensors")
    settings = build(DistillSettings, distill_settings(OPTIONS[name], batch=8, micro_batch=2, steps=2))
    inputs = {
        "teacher": Handle("teacher", tmp_path / "teacher", "t"),
        "latents": Handle("latents", latents.directory, "l"),
        "trajectories": Handle("samples", tmp_path / "trajectories", "p"),
    }
    made = run_job(Run.create("student", settings, inputs, tmp_path / "runs"), 2)
    weights = load_file(made.path / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    before = load_file(tmp_path / "teacher/model.safetensors")
    assert not torch.equal(weights["patch_in.weight"], before["patch_in.weight"])
