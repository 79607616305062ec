"""A run directory: the resolved settings of one job, its log of metrics, and, at the end, its result."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdm_pipeline.configuration import plain
from qdm_pipeline.files import digest_json, read_json, write_json
from qdm_pipeline.handle import Handle


@dataclass(frozen=True)
class Run:
    """One job: what to do (``kind``, ``settings``), from what (``inputs``), and where (``directory``)."""

    kind: str
    settings: dict[str, Any]
    inputs: dict[str, Handle]
    directory: Path

    @classmethod
    def create(
        cls, kind: str, settings: Any, inputs: dict[str, Handle], root: Path, form: object = None
    ) -> "Run":
        """The run for these settings and inputs under ``root``, in a directory named by their digest.

        The same request always meets the same directory: that is what makes a second start a resume.
        ``form``, JSON-like, is what the code decides of the result: where it changes, another run is made.
        """
        plain_settings = plain(settings)
        digests = {name: handle.digest for name, handle in inputs.items()}
        asked = {"kind": kind, "settings": plain_settings, "inputs": digests}
        key = digest_json(asked if form is None else asked | {"form": form})
        run = cls(kind, plain_settings, inputs, root / f"{kind}-{key[:12]}")
        handles = {name: handle.to_json() for name, handle in inputs.items()}
        write_json(run.file, {"kind": kind, "settings": plain_settings, "inputs": handles})
        return run

    @classmethod
    def read(cls, file: Path) -> "Run":
        """The run that a ``run.json`` describes."""
        value = read_json(file)
        inputs = {name: Handle.from_json(item) for name, item in value["inputs"].items()}
        return cls(value["kind"], value["settings"], inputs, file.parent)

    @property
    def file(self) -> Path:
        """The resolved settings, written before any work."""
        return self.directory / "run.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line: ``step`` and metrics, in order."""
        return self.directory / "metrics.jsonl"

    def result(self) -> Handle | None:
        """The finished artefact, or None while there is none."""
        done = self.directory / "done.json"
        return replace(Handle.from_json(read_json(done)), path=self.directory) if done.exists() else None

    def finish(self, digest: str, metadata: dict[str, Any]) -> Handle:
        """Declare the artefact in this directory complete; nothing in it may change afterwards."""
        handle = Handle(self.kind, self.directory, digest, metadata)
        write_json(self.directory / "done.json", handle.to_json())
        return handle

    def metrics(self) -> list[dict[str, float]]:
        """All logged metrics by step; of a step that was logged twice (after a resume) the later one."""
        if not self.metrics_file.exists():
            return []
        lines = [line for line in self.metrics_file.read_text().splitlines() if line.endswith("}")]
        rows = {row["step"]: row for row in map(json.loads, lines)}
        return [rows[step] for step in sorted(rows)]
