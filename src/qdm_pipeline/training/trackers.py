"""Where metrics go: always a JSON line a step beside the run, and MLflow when the environment names a run.

Boards of other makers are in `training.boards`.

The hook that opens an MLflow run sets ``MLFLOW_TRACKING_URI`` and ``MLFLOW_RUN_ID``; metric names get the
job's kind in front (``teacher/loss``), so that all jobs of one pipeline run share one MLflow run.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.boards import Board, boards

logger = logging.getLogger(__name__)

BATCH = 500  # metrics a call; one call costs about 0.3 s on SQLite
FLUSH_SECONDS = 10.0
AGAIN_SECONDS = 60.0  # before MLflow is tried again after it failed


class Tracker:
    """Logs on rank 0; on other ranks every call does nothing."""

    def __init__(self, lines: TextIO | None, boards: Iterable[Board]) -> None:
        self._lines, self._boards = lines, list(boards)
        self._full = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one step."""
        if self._lines is not None:
            self._write(json.dumps({"step": step, **metrics}) + "\n")
        self._tell(lambda board: board.log(step, metrics))

    def close(self) -> None:
        """Write out what is buffered."""
        if self._lines is not None:
            self._lines.close()
        self._tell(lambda board: board.close())

    def _tell(self, action: Callable[[Board], None]) -> None:
        for board in list(self._boards):
            try:
                action(board)
            except Exception as error:  # a broken board is no reason to end a training either
                self._boards.remove(board)
                logger.warning("%s takes no more metrics: %s", type(board).__name__, error)

    def _write(self, line: str) -> None:
        assert self._lines is not None
        try:
            os.write(self._lines.fileno(), line.encode())  # past the buffer, which would try again at its end
        except OSError as error:  # curves are no reason to end a training; a checkpoint that fails will be
            if not self._full:
                logger.warning("%s: metrics are not written (%s)", self._lines.name, error.strerror)
            self._full = True


def open_tracker(run: Run, ranks: Ranks) -> Tracker:
    """A tracker for ``run``; MLflow first gets what an interrupted or finished run has logged before."""
    if not ranks.is_main:
        return Tracker(None, [])
    run.directory.mkdir(parents=True, exist_ok=True)
    torn = run.metrics_file.exists() and run.metrics_file.read_bytes()[-1:] not in (b"", b"\n")
    lines = run.metrics_file.open("a")
    if torn:  # a killed process may have left half a line
        lines.write("\n")
        lines.flush()
    mlflow = _MLflow.from_environment(run)
    return Tracker(lines, [*([mlflow] if mlflow else []), *boards(run)])


class _MLflow:
    """Metrics, buffered, and pictures for one MLflow run; failure to deliver is said, tried again, no end."""

    def __init__(self, client: Any, run_id: str, run: Run) -> None:
        self._client, self._run_id, self._prefix = client, run_id, run.kind
        self._buffer: list[Any] = []
        self._next = time.monotonic() + FLUSH_SECONDS
        self._failed = False
        self._pictures, self._sent = run.directory / "samples", set[Path]()
        for row in run.metrics():
            self.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    @classmethod
    def from_environment(cls, run: Run) -> "_MLflow | None":
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if run_id is None:
            return None
        try:
            from mlflow import MlflowClient
        except ImportError:
            logger.warning(
                "MLflow is not installed here: metrics of %s go to %s only", run.kind, run.metrics_file
            )
            return None
        return cls(MlflowClient(os.environ["MLFLOW_TRACKING_URI"]), run_id, run)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [
            Metric(f"{self._prefix}/{name}", value, now, step) for name, value in metrics.items()
        ]
        late = time.monotonic() > self._next
        if late or (len(self._buffer) >= BATCH and not self._failed):
            self.flush()

    def close(self) -> None:
        """Deliver what is left, or say what was not."""
        self.flush()
        if self._buffer:
            logger.warning(
                "MLflow did not take %d metrics of %s: they stand in metrics.jsonl, and the next run "
                "with the same settings sends them", len(self._buffer), self._prefix,
            )  # fmt: skip

    def flush(self) -> None:
        self._next = time.monotonic() + FLUSH_SECONDS
        try:
            while self._buffer:
                self._client.log_batch(self._run_id, metrics=self._buffer[:BATCH])
                del self._buffer[:BATCH]
            for picture in sorted(set(self._pictures.glob("*.webp")) - self._sent):
                self._show(picture)
                self._sent.add(picture)
            self._failed = False
        except Exception as error:
            if not self._failed:
                logger.warning("MLflow does not take metrics now (%s); %s goes on", error, self._prefix)
            self._failed, self._next = True, time.monotonic() + AGAIN_SECONDS

    def _show(self, picture: Path) -> None:
        """The moving picture as an artifact, its middle frame as an image that MLflow scrubs by step."""
        from PIL import Image

        self._client.log_artifact(self._run_id, str(picture), f"{self._prefix}/samples")
        role, _, step = picture.stem.rpartition("-")
        if role:
            with Image.open(picture) as image:
                image.seek(getattr(image, "n_frames", 1) // 2)
                still = image.convert("RGB")
            self._client.log_image(self._run_id, still, key=f"{self._prefix}/{role}", step=int(step))
