"""What passes between pipeline nodes: a small pointer to a finished artefact on disk."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Handle:
    """A directory that is complete, what it holds, and a digest that changes whenever it does."""

    kind: str  # "clips", "latents", "autoencoder", "classifier", "teacher", "student", "export", "samples"
    path: Path
    digest: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The handle as JSON-like values."""
        return {**asdict(self), "path": self.path.as_posix()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Handle":
        """Inverse of `to_json`."""
        return cls(value["kind"], Path(value["path"]), value["digest"], value["metadata"])
