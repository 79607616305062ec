"""A folder by its path."""

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from qdm_pipeline.errors import InputError


class DirectoryDataset(AbstractDataset[NoReturn, Path]):
    """Gives nodes the path of a folder, which the catalog alone knows; nothing is read."""

    def __init__(
        self, *, path: str, must_exist: bool = False, metadata: dict[str, Any] | None = None
    ) -> None:
        """A folder at ``path``; ``must_exist`` for one that a user brings, not one that nodes fill."""
        self._path, self._must_exist, self.metadata = Path(path), must_exist, metadata

    def load(self) -> Path:
        """The folder's path; `InputError` if it must exist and does not."""
        if self._must_exist and not self._path.is_dir():
            raise InputError(
                f"{self._path}: no such folder; put it there or change its path in conf/base/catalog.yml"
            )
        return self._path

    def save(self, data: NoReturn) -> None:
        """Nodes put files into the folder themselves."""
        raise NotImplementedError(f"{self._path} is an input; nodes write into it and return handles")

    def _exists(self) -> bool:
        return self._path.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}
