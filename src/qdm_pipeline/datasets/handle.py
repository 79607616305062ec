"""A handle: where a finished artefact lies, what it is, its digest."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json, write_json
from qdm_pipeline.handle import Handle


class HandleDataset(AbstractDataset[Handle, Handle]):
    """A small JSON file. Its path to the artefact is relative to itself, so the project can be moved."""

    def __init__(self, *, filepath: str, kind: str, metadata: dict[str, Any] | None = None) -> None:
        """A handle in the file ``filepath`` to an artefact of ``kind``."""
        self._filepath, self._kind, self.metadata = Path(filepath), kind, metadata

    def load(self) -> Handle:
        """The handle; `InputError` if there is none, it is of another kind, or its artefact is gone."""
        if not self._filepath.exists():
            raise InputError(
                f"{self._filepath}: no {self._kind} has been made yet; run the pipeline that makes it"
            )
        handle = self._read()
        if handle.kind != self._kind:
            raise InputError(
                f"{self._filepath}: found a handle of kind {handle.kind!r}, expected {self._kind!r}"
            )
        if not handle.path.exists():
            raise InputError(
                f"{self._filepath}: its {self._kind} at {handle.path} is gone; run its pipeline again"
            )
        return handle

    def save(self, data: Handle) -> None:
        """Write the handle."""
        if data.kind != self._kind:
            raise InputError(
                f"{self._filepath}: takes handles of kind {self._kind!r}, was given {data.kind!r}"
            )
        folder = self._filepath.parent.resolve()
        relative = Path(os.path.relpath(data.path.resolve(), folder))
        write_json(self._filepath, replace(data, path=relative).to_json())

    def preview(self) -> JSONPreview:
        """The file, for Kedro-Viz."""
        return JSONPreview(self._filepath.read_text())

    def _read(self) -> Handle:
        handle = Handle.from_json(read_json(self._filepath))
        return replace(handle, path=Path(os.path.normpath(self._filepath.parent.resolve() / handle.path)))

    def _exists(self) -> bool:
        return self._filepath.exists() and self._read().path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "kind": self._kind}
