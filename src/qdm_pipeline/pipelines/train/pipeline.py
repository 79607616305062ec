"""Wiring of ``train`` and its halves: the nodes tagged ``teacher`` and those tagged ``distill``."""

import warnings

from kedro.pipeline import Pipeline, node, pipeline
from kedro.utils import KedroExperimentalWarning

from qdm_pipeline.pipelines.train import nodes
from qdm_pipeline.pipelines.train.diagram import distillation_step


def create_pipeline() -> Pipeline:
    """Latents to teacher and student."""
    warnings.filterwarnings("ignore", category=KedroExperimentalWarning)  # of node previews, at every command
    return pipeline(
        [
            node(
                nodes.train_teacher,
                ["params:teacher", "latents", "model_runs", "params:world_size", "params:launch"],
                "teacher",
                name="train_teacher",
                tags="teacher",
            ),
            node(nodes.plot_curves, "teacher", "teacher_curves", name="plot_teacher", tags="teacher"),
            node(
                nodes.make_trajectories,
                ["params:teacher_trajectories", "params:distill", "teacher", "autoencoder"]
                + ["sample_runs", "params:world_size", "params:launch"],
                "trajectories",
                name="make_trajectories",
                tags="distill",
            ),
            node(
                nodes.start_student,
                [
                    "params:distill",
                    "teacher",
                    "trajectories",
                    "model_runs",
                    "params:world_size",
                    "params:launch",
                ],
                "student_start",
                name="start_student",
                tags="distill",
            ),
            node(
                nodes.distill_student,
                [
                    "params:distill",
                    "teacher",
                    "trajectories",
                    "student_start",
                    "latents",
                    "clips",
                    "autoencoder",
                    "classifier",
                ]
                + ["model_runs", "params:world_size", "params:launch"],
                "student",
                name="distill_student",
                tags="distill",
                preview_fn=distillation_step,
            ),
            node(nodes.plot_curves, "student", "student_curves", name="plot_student", tags="distill"),
        ],
        namespace="train",
        prefix_datasets_with_namespace=False,
    )
