"""The pipelines by name."""

from kedro.pipeline import Pipeline

from qdm_pipeline.pipelines.demo_data.pipeline import create_pipeline as demo_data
from qdm_pipeline.pipelines.evaluate.pipeline import create_pipeline as evaluate
from qdm_pipeline.pipelines.preprocess.pipeline import create_pipeline as preprocess
from qdm_pipeline.pipelines.sample.pipeline import create_pipeline as sample
from qdm_pipeline.pipelines.train.pipeline import create_pipeline as train


def register_pipelines() -> dict[str, Pipeline]:
    """All pipelines; ``teacher`` and ``distill`` are the halves of ``train``."""
    halves = {name: train().only_nodes_with_tags(name) for name in ("teacher", "distill")}
    parts = {"preprocess": preprocess(), "train": train(), "sample": sample(), "evaluate": evaluate()}
    return {"__default__": sum(parts.values(), Pipeline([])), "demo_data": demo_data(), **parts, **halves}
