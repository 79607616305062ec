"""Wiring of ``evaluate``."""

from kedro.pipeline import Pipeline, pipeline


def create_pipeline() -> Pipeline:
    """Samples to metrics and a report."""
    return pipeline([])
