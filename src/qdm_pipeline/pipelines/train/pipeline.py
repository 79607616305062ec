"""Wiring of ``train`` and its halves: the nodes tagged ``teacher`` and those tagged ``distill``."""

from kedro.pipeline import Pipeline, node, pipeline

from qdm_pipeline.pipelines.train import nodes


def create_pipeline() -> Pipeline:
    """Latents to teacher and student."""
    return pipeline(
        [
            node(
                nodes.train_teacher,
                ["params:teacher", "latents", "model_runs", "params:world_size"],
                "teacher",
                name="train_teacher",
                tags="teacher",
            ),
            node(nodes.plot_curves, "teacher", "teacher_curves", name="plot_teacher", tags="teacher"),
            node(
                nodes.make_pairs,
                ["params:teacher_pairs", "params:distill", "teacher", "autoencoder"]
                + ["sample_runs", "params:world_size"],
                "teacher_pairs",
                name="make_pairs",
                tags="distill",
            ),
            node(
                nodes.distill_student,
                [
                    "params:distill",
                    "teacher",
                    "teacher_pairs",
                    "latents",
                    "clips",
                    "autoencoder",
                    "classifier",
                ]
                + ["model_runs", "params:world_size"],
                "student",
                name="distill_student",
                tags="distill",
            ),
            node(nodes.plot_curves, "student", "student_curves", name="plot_student", tags="distill"),
        ],
        namespace="train",
        prefix_datasets_with_namespace=False,
    )
