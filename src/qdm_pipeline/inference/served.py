"""An exported pipeline as MLflow calls it, which names this module as ``loader_module``."""

from typing import Any

from numpy.typing import NDArray

from qdm_pipeline.inference.pipeline import QuantizedVideoPipeline


class Served:
    """What `mlflow.pyfunc` wants of a model."""

    def __init__(self, pipeline: QuantizedVideoPipeline) -> None:
        self.pipeline = pipeline

    def predict(self, table: Any, params: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """One video for each row of a data frame: ``videos`` uint8 [B, 3, T, H, W] and ``codes`` int32.

        Its column ``asked`` holds class names or captions, or "" in every row for what the model likes;
        ``params`` has ``seed``, ``steps`` and ``guidance`` as `QuantizedVideoPipeline` takes them.
        """
        asked = list(table["asked"])
        made = self.pipeline(asked if any(asked) else None, len(asked), **params)
        return {"videos": made.videos.numpy(), "codes": made.codes.numpy()}


def _load_pyfunc(directory: str) -> Served:
    return Served(QuantizedVideoPipeline.from_pretrained(directory))
