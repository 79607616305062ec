"""The training loop: resume, step, log, checkpoint, export. It reads from top to bottom."""

import logging
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.files import digest_file
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.stopping import Stopped, StopRequest
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.trackers import open_tracker

logger = logging.getLogger(__name__)


class Ended(Exception):
    """Raised by a task that is over before its last step; the message says why."""


class Task(Protocol):
    """Something that learns in steps."""

    steps: int
    log_every: int
    checkpoint_every: int

    @property
    def sound(self) -> bool:
        """Whether a checkpoint of the present state is worth having."""

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One optimizer step, counted from 0; returns metrics."""

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""

    def export(self, directory: Path) -> dict[str, Any]:
        """Write ``model.safetensors`` and ``config.json``; returns metadata. Called on the first rank."""


def train(task: Task, run: Run, ranks: Ranks) -> None:
    """Train to the last step, from the newest checkpoint if there is one, and declare the run finished.

    Raises `FloatingPointError` naming run and step at the first loss that is not finite on any rank, and
    `Stopped` when a signal has asked any rank to stop: then after the same step on all, with a checkpoint.
    """
    start = 0
    if (found := checkpoint.latest(run.directory)) is not None:
        start = found.step
        task.load_state_dict(checkpoint.load(found))
        if ranks.is_main:
            logger.info("%s: resumed at step %d from %s", run.kind, start, found.path)
    tracker = open_tracker(run, ranks)
    progress = tqdm(
        range(start, task.steps), run.kind, initial=start, total=task.steps, unit="step", mininterval=0.5,
        disable=not ranks.is_main, file=sys.stderr, dynamic_ncols=True,
    )  # fmt: skip
    with StopRequest() as stop:
        for step in progress:
            try:
                metrics = task.train_step(step)
            except Ended as reason:
                logger.warning("%s: %s", run.kind, reason)
                break
            done = step + 1
            if done % task.log_every == 0 or done == task.steps:
                values = averaged(metrics, ranks)
                if not all(map(torch.isfinite, values.values())):
                    raise FloatingPointError(
                        f"{run.kind}, step {step}: not finite: {named(values)} ({run.directory})"
                    )
                tracker.log(done, {name: float(value) for name, value in values.items()})
                progress.set_postfix_str(named(values, limit=3))
            asked = stop.agreed(ranks, done)
            if done == task.steps:
                break
            if (asked or done % task.checkpoint_every == 0) and task.sound and ranks.is_main:
                checkpoint.save(run.directory, done, task.state_dict())
            if asked:
                tracker.close()
                ranks.barrier()  # the first rank saves
                saved = "saved" if task.sound else "not saved, as its guard has doubts"
                raise Stopped(
                    f"{run.kind}: stopped on {asked.name} after step {done}, {saved}; "
                    "the same command continues"
                )
    tracker.close()
    if ranks.is_main:
        metadata = task.export(run.directory)
        run.finish(digest_file(run.directory / "model.safetensors"), metadata)
        checkpoint.clear(run.directory)
    ranks.barrier()


def averaged(metrics: dict[str, float | Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Every metric's mean over ranks, with one collective."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in metrics.values()])
    return dict(zip(metrics, ranks.mean(values.to(ranks.device)).cpu(), strict=True))


def named(values: dict[str, Tensor], limit: int | None = None) -> str:
    """Metrics as a person reads them."""
    return ", ".join(f"{name} {float(value):.4g}" for name, value in list(values.items())[:limit])
