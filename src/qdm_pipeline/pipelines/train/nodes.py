"""Latents to a teacher, the teacher to a student."""

import logging
from pathlib import Path

from matplotlib.figure import Figure

from qdm_pipeline.evaluation.figures import curves_figure
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.launch.world import WorldSize
from qdm_pipeline.run import Run
from qdm_pipeline.training.distill import DistillSettings
from qdm_pipeline.training.sampling import SamplingSettings
from qdm_pipeline.training.teacher import TeacherSettings

logger = logging.getLogger(__name__)


def train_teacher(
    settings: TeacherSettings, latents: Handle, runs: Path, world_size: WorldSize, launch: LaunchSettings
) -> Handle:
    """Train the many-step teacher."""
    return run_job(Run.create("teacher", settings, {"latents": latents}, runs), world_size, launch)


def make_pairs(
    settings: SamplingSettings,
    distill: DistillSettings,
    teacher: Handle,
    autoencoder: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> Handle:
    """Sample the teacher's ODE and keep the noise, if a regression is asked for."""
    if distill.dmd.regression_weight == 0:
        logger.info("teacher_pairs: none made, as distill.dmd.regression_weight is 0")
        return Handle("samples", teacher.path, "none", {"count": 0})
    return run_job(
        Run.create("samples", settings, {"model": teacher, "autoencoder": autoencoder}, runs),
        world_size,
        launch,
    )


def distill_student(
    settings: DistillSettings,
    teacher: Handle,
    teacher_pairs: Handle,
    latents: Handle,
    clips: Handle,
    autoencoder: Handle,
    classifier: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> Handle:
    """Distil the teacher into a few-step student."""
    inputs = {"teacher": teacher, "latents": latents}
    if settings.validation is not None:
        inputs |= {"clips": clips, "autoencoder": autoencoder, "classifier": classifier}
    if settings.dmd.regression_weight > 0:
        inputs |= {"teacher_pairs": teacher_pairs}
    return run_job(Run.create("student", settings, inputs, runs), world_size, launch)


def plot_curves(model: Handle) -> Figure:
    """Every metric of a model's training over its steps."""
    return curves_figure(Run.read(model.path / "run.json").metrics())
