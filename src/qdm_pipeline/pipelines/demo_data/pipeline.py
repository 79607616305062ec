"""Wiring of ``demo_data``."""

from kedro.pipeline import Pipeline, node, pipeline

from qdm_pipeline.pipelines.demo_data.nodes import write_videos


def create_pipeline() -> Pipeline:
    """The embedded example, into the folder that the catalog calls ``demo_videos``."""
    return pipeline(
        [node(write_videos, ["params:demo_data", "demo_videos"], "demo_manifest", name="write_demo_videos")]
    )
