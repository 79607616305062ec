"""A moving picture that Kedro-Viz plays and MLflow keeps."""

import base64
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import ImagePreview

from qdm_pipeline.files import write_atomic


class AnimationDataset(AbstractDataset[bytes, bytes]):
    """The bytes of an animated WebP (or any other picture that browsers play)."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """An animation in the file ``filepath``."""
        self._filepath, self.metadata = Path(filepath), metadata

    def load(self) -> bytes:
        """The file's bytes."""
        return self._filepath.read_bytes()

    def save(self, data: bytes) -> None:
        """Write the file."""
        write_atomic(self._filepath, data)

    def preview(self) -> ImagePreview:
        """The picture, for Kedro-Viz."""
        return ImagePreview(base64.b64encode(self.load()).decode())

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
