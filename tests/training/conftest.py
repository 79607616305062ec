import pytest
import torch
from safetensors.torch import save_file

from qdm_pipeline.configuration import build
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.distill import DistillTask
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.teacher import TeacherSettings, TeacherTask
from qdm_pipeline.training.trajectories import Trajectories
from qdm_pipeline.video.shards import write_shards

OPTIMIZER = dict(
    lr=1e-3, muon_lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, clip=1.0, warmup=2, decay=True
)  # fmt: skip
COMMON = dict(
    batch=4,
    micro_batch=4,
    precision="fp32",
    parallel=dict(strategy="ddp", offload_teacher=False, compile=False),
    recompute="nothing",
    seed=3,
    log_every=1,
    checkpoint=dict(every=2, keep_last=2, keep_every=None),
    ema=0.9,
)
QUANTIZER = dict(kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.1)
TEACHER = COMMON | dict(
    model=dict(
        width=16,
        depth=1,
        heads=2,
        patch=(1, 1, 1),
        attention="full",
        embedding_dim=8,
        residual_dim=0,
        quantizer=QUANTIZER,
    ),
    schedule=dict(name="flow", shift=1.0, low=0.0, high=1.0, density="uniform"),
    optimizer=OPTIMIZER,
    condition="class",
    condition_dropout=0.1,
    quantization_weight=0.5,
    commitment_weight=0.25,
    weight_limit=20.0,
    steps=6,
)
GAN = dict(student_weight=0.0, critic_weight=0.01, width=8, r1_weight=0.0, r1_deviation=0.1)
DMD = dict(
    times=(1.0, 0.5),
    path="quantized",
    renoising="fresh",
    inputs="simulated",
    codebook="still",
    matching="latents",
    temperature=0.5,
    guidance=1.5,
    guidance_rescale=0.5,
    normalise=True,
    low=0.02,
    high=0.98,
    shift=1.0,
    weight_limit=20.0,
    denoising_weight=0.0,
    regression_weight=0.0,
    gan=GAN,
)
GUARD = dict(
    then="stop",
    patience=3,
    most_mean=50.0,
    least_std=0.0,
    most_std=50.0,
    least_diversity=0.0,
    least_perplexity=0.0,
)
START = dict(
    optimizer=OPTIMIZER,
    commitment_weight=0.25,
    steps=0,
    **{name: COMMON[name] for name in ("batch", "micro_batch", "ema", "log_every", "checkpoint")},
)
DISTILL = COMMON | dict(
    start=START,
    dmd=DMD,
    critic_updates=3,
    critic_warmup=0,
    validation=None,
    guard=GUARD,
    student_optimizer=OPTIMIZER | dict(muon_lr=None),
    critic_optimizer=OPTIMIZER | dict(muon_lr=None),
    steps=4,
)


@pytest.fixture
def teacher_settings():
    return TEACHER


@pytest.fixture
def tiny_model():
    return TEACHER["model"]


@pytest.fixture
def latents(tmp_path):
    draw = torch.Generator().manual_seed(0)
    samples = [
        (
            {"latent": torch.randn(3, 1, 2, 2, generator=draw)},
            {"id": str(i), "label": i % 2, "caption": ["A red dot", "a dot"][i % 2], "split": "train"},
        )
        for i in range(24)
    ]
    return write_shards(tmp_path / "latents", samples, {"classes": ["even", "odd"]}, 10)


@pytest.fixture
def make_teacher(latents):
    return lambda ranks=None, **changes: TeacherTask(
        build(TeacherSettings, TEACHER | changes), latents, ranks or Ranks()
    )


@pytest.fixture
def distill_settings():
    """Plain settings of a distillation with some of those of its loss changed."""

    def make(dmd, guard=None, **changes):
        loss = DMD | dmd | {"gan": GAN | dmd.get("gan", {})}
        return DISTILL | {"dmd": loss, "guard": GUARD | (guard or {})} | changes

    return make


@pytest.fixture
def make_distill(latents, make_teacher, distill_settings, tmp_path):
    exported = tmp_path / "teacher"
    exported.mkdir()
    make_teacher().export(exported)

    def make(
        judge=None, trajectories=None, dmd=None, guard=None, gan=None, start=None, ranks=None, **changes
    ):
        loss = (dmd or {}) | ({} if gan is None else {"gan": gan})
        settings = build(DistillSettings, distill_settings(loss, guard, **changes))
        return DistillTask(settings, exported, latents, ranks or Ranks(), judge, trajectories, start=start)

    return make


@pytest.fixture
def make_trajectories(tmp_path):
    """Straight lines from noise to noise + 3, kept at some times."""

    def make(times, renoising, count=8):
        noise = torch.randn(count, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        sample = noise + 3
        kept = torch.stack(
            [Schedule("flow").add_noise(sample, noise, torch.full((count,), t)) for t in times], 1
        )
        tensors = {"latents": sample, "trajectory": kept, "labels": torch.arange(count) % 2}
        folder = tmp_path / "trajectories"
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "samples.safetensors")
        return Trajectories(folder, times, renoising, Schedule("flow"))

    return make
