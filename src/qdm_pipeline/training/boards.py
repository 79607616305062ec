"""TensorBoard and Weights & Biases beside MLflow, for those who ask for them (``conf/base/trackers.yml``)."""

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from qdm_pipeline.run import Run


class Board(Protocol):
    """A place for metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Write out what is buffered."""


class TensorBoard:
    """One folder of event files a job; what an earlier process logged is written again from its log."""

    def __init__(self, folder: Path, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        mine = folder / run.directory.name
        shutil.rmtree(mine, ignore_errors=True)
        self._writer: Any = SummaryWriter(str(mine))
        self._last: dict[str, int] = {}
        for row in run.metrics():
            self.log(int(row.pop("step")), row)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """See `Board`."""
        for name, value in metrics.items():
            if step > self._last.get(name, -1):  # after a resume steps come again, with the same values
                self._writer.add_scalar(name, value, step)
                self._last[name] = step

    def close(self) -> None:
        """See `Board`."""
        self._writer.close()


class WeightsAndBiases:
    """One W&B run a job, continued by its name; the jobs of one project form groups by their kind."""

    def __init__(self, project: str, run: Run) -> None:
        import wandb

        name = run.directory.name
        self._run: Any = wandb.init(
            project=project, id=name, name=name, group=run.kind, config=run.settings, resume="allow",
            dir=run.directory,
        )  # fmt: skip
        begun = self._run.step
        for row in run.metrics():
            if (step := int(row.pop("step"))) >= begun:  # W&B takes steps in their order only
                self.log(step, row)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """See `Board`."""
        self._run.log(metrics, step=step)

    def close(self) -> None:
        """See `Board`."""
        self._run.finish()


def boards(run: Run) -> list[Board]:
    """Those that the environment asks for: ``QDM_TENSORBOARD``, a folder, and ``QDM_WANDB``, a project.

    What wandb itself reads (``WANDB_MODE``, ...) holds too.
    """
    found: list[Board] = []
    if folder := os.environ.get("QDM_TENSORBOARD"):
        found.append(TensorBoard(Path(folder), run))
    if project := os.environ.get("QDM_WANDB"):
        found.append(WeightsAndBiases(project, run))
    return found
