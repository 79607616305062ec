"""Latents to a teacher, the teacher to a student."""

import logging
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from qdm_pipeline.evaluation.figures import curves_figure
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.launch.world import WorldSize
from qdm_pipeline.run import Run
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.few_step import sampled_path
from qdm_pipeline.training.sampling import SamplingSettings
from qdm_pipeline.training.start import StartJob
from qdm_pipeline.training.teacher import TeacherSettings

logger = logging.getLogger(__name__)


def train_teacher(
    settings: TeacherSettings, latents: Handle, runs: Path, world_size: WorldSize, launch: LaunchSettings
) -> Handle:
    """Train the many-step teacher."""
    return run_job(Run.create("teacher", settings, {"latents": latents}, runs), world_size, launch)


def make_trajectories(
    settings: SamplingSettings,
    distill: DistillSettings,
    teacher: Handle,
    autoencoder: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> Handle:
    """Sample the teacher's ODE and keep what it passes at the student's times, if anything learns from it."""
    if distill.start.steps == 0 and distill.dmd.regression_weight == 0:
        logger.info("trajectories: none made, as distill.start.steps and distill.dmd.regression_weight are 0")
        return Handle("samples", teacher.path, "none", {"count": 0})
    settings = replace(settings, keep=distill.dmd.times)
    return run_job(
        Run.create("samples", settings, {"model": teacher, "autoencoder": autoencoder}, runs),
        world_size,
        launch,
    )


def start_student(
    settings: DistillSettings,
    teacher: Handle,
    trajectories: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> Handle:
    """Teach the teacher's trajectories to a student of few steps, if that is asked for."""
    if settings.start.steps == 0:
        logger.info("student_start: the teacher itself, as distill.start.steps is 0")
        return Handle("start", teacher.path, teacher.digest, {"steps": 0})
    dmd = settings.dmd
    job = StartJob(
        start=settings.start,
        times=dmd.times,
        path=sampled_path(dmd.path),
        renoising=dmd.renoising,
        precision=settings.precision,
        parallel=settings.parallel,
        recompute=settings.recompute,
        seed=settings.seed,
    )
    return run_job(
        Run.create("start", job, {"teacher": teacher, "trajectories": trajectories}, runs),
        world_size,
        launch,
    )


def distill_student(
    settings: DistillSettings,
    teacher: Handle,
    trajectories: Handle,
    student_start: Handle,
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
        inputs |= {"trajectories": trajectories}
    if settings.start.steps > 0:
        inputs |= {"start": student_start}
    return run_job(Run.create("student", settings, inputs, runs), world_size, launch)


def plot_curves(model: Handle) -> Figure:
    """Every metric of a model's training over its steps."""
    return curves_figure(Run.read(model.path / "run.json").metrics())
