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
            node(nodes.plot_corruptions, "metrics", "corruptions", name="plot_corruptions"),
            node(nodes.plot_code_dropout, "metrics", "code_dropout", name="plot_code_dropout"),
            node(nodes.plot_codebook, "evaluation", "codebook_use", name="plot_codebook"),
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
