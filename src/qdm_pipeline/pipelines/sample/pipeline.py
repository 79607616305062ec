"""Wiring of ``sample``."""

from kedro.pipeline import Node, Pipeline, node, pipeline

from qdm_pipeline.pipelines.sample.nodes import export_model, sample_model

SAMPLES = {  # name of the samples (and of their parameters): the model they are drawn from
    "teacher_samples": "teacher",
    "teacher_few_step_samples": "teacher",
    "student_samples": "student",
}


def create_pipeline() -> Pipeline:
    """All samples that the evaluation compares, and the student for use elsewhere."""
    return pipeline(
        [
            *(_sampling(samples, model) for samples, model in SAMPLES.items()),
            node(
                export_model,
                ["params:student_samples", "student", "autoencoder", "model_runs"],
                "student_export",
                name="export_student",
            ),
        ],
        namespace="sample",
        prefix_datasets_with_namespace=False,
    )


def _sampling(samples: str, model: str) -> Node:
    return node(
        sample_model,
        [f"params:{samples}", model, "autoencoder", "sample_runs", "params:world_size", "params:launch"],
        [samples, f"{samples}_grid"],
        name=f"sample_{samples.removesuffix('_samples')}",
    )
