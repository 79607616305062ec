"""Wiring of ``evaluate``."""

from kedro.pipeline import Pipeline, node, pipeline

from qdm_pipeline.pipelines.evaluate import nodes

JUDGED = ["teacher_samples", "teacher_few_step_samples", "student_samples"]


def create_pipeline() -> Pipeline:
    """Samples to metrics and a report."""
    return pipeline(
        [
            node(
                nodes.evaluate_samples,
                ["params:evaluation", "clips", "latents", "autoencoder", "classifier", "teacher"]
                + [*JUDGED, "evaluation_runs", "params:world_size", "params:launch"],
                ["evaluation", "metrics"],
                name="evaluate_samples",
            ),
            node(nodes.plot_distances, "metrics", "distances", name="plot_distances"),
            node(
                nodes.write_report,
                ["metrics", "evaluation", "autoencoder", "classifier", "teacher", "student"],
                "report",
                name="write_report",
            ),
        ],
        namespace="evaluate",
        prefix_datasets_with_namespace=False,
    )
