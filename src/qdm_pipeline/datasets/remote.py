"""A folder behind a URL, by the path of its local copy."""

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from qdm_pipeline.video.remote import fetch


class RemoteDirectoryDataset(AbstractDataset[NoReturn, Path]):
    """Copies a folder from a URL of fsspec to ``path``, what has changed only, and gives nodes that path."""

    def __init__(
        self,
        *,
        url: str,
        path: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """``credentials``: options of the file system, by the name of an entry in credentials.yml."""
        self._url, self._path = url, Path(path)
        self._options, self.metadata = credentials or {}, metadata

    def load(self) -> Path:
        """The copy's path, when it is complete; `InputError` if there are no files at the URL."""
        return fetch(self._url, self._path, **self._options)

    def save(self, data: NoReturn) -> None:
        """Nothing is written back."""
        raise NotImplementedError(f"{self._url} is an input")

    def _describe(self) -> dict[str, Any]:
        return {"url": self._url, "path": str(self._path)}
