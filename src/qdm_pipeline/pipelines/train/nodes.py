"""Latents to a teacher, the teacher to a student."""

from pathlib import Path

from matplotlib.figure import Figure

from qdm_pipeline.evaluation.figures import curves_figure
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.run import Run
from qdm_pipeline.training.distill import DistillSettings
from qdm_pipeline.training.teacher import TeacherSettings


def train_teacher(settings: TeacherSettings, latents: Handle, runs: Path, world_size: int) -> Handle:
    """Train the many-step teacher."""
    return run_job(Run.create("teacher", settings, {"latents": latents}, runs), world_size)


def distill_student(
    settings: DistillSettings, teacher: Handle, latents: Handle, runs: Path, world_size: int
) -> Handle:
    """Distil the teacher into a few-step student."""
    return run_job(
        Run.create("student", settings, {"teacher": teacher, "latents": latents}, runs), world_size
    )


def plot_curves(model: Handle) -> Figure:
    """Every metric of a model's training over its steps."""
    return curves_figure(Run.read(model.path / "run.json").metrics())
