"""The training loop: resume, step, log, checkpoint, export. It reads from top to bottom."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.files import digest_file
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.run import Run
from qdm_pipeline.stopping import Stopped, StopRequest
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.progress import Progress, named
from qdm_pipeline.training.trackers import open_tracker
from qdm_pipeline.training.watch import Watched, check_replicas, traced

logger = logging.getLogger(__name__)


class Ended(Exception):
    """Raised by a task that is over before its last step; the message says why."""


class Task(Watched, Protocol):
    """Something that learns in steps."""

    steps: int
    log_every: int
    checkpoint: Retention

    @property
    def sound(self) -> bool:
        """Whether a checkpoint of the present state is worth having."""

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One optimizer step, counted from 0; returns metrics.

        Raises `DivergenceError`, on all ranks alike and before any weight moves, if it cannot be taken.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs, the same on every rank; called on all ranks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, on any number of ranks."""

    def export(self, directory: Path) -> dict[str, Any]:
        """Write ``model.safetensors`` and ``config.json`` on the first rank; called on all; metadata."""


def train(task: Task, run: Run, ranks: Ranks) -> None:
    """Train to the last step, from the newest checkpoint if there is one, and declare the run finished.

    Raises `DivergenceError` naming run, step, rank and clips where something is not finite, before the step
    is taken; `InputError` for a disk that takes no checkpoint; and `Stopped` when a signal has asked any rank
    to stop: then after the same step on all, with a checkpoint.
    """
    start = resume(task, run, ranks)
    with checkpoint.Writer(run.directory, task.checkpoint) if ranks.is_main else nullcontext() as writer:
        _take_steps(task, run, ranks, start, writer)
    metadata = task.export(run.directory)
    if ranks.is_main:
        run.finish(digest_file(run.directory / "model.safetensors"), metadata)
        checkpoint.clear(run.directory)
    ranks.barrier()


def _take_steps(task: Task, run: Run, ranks: Ranks, start: int, writer: checkpoint.Writer | None) -> None:
    tracker = open_tracker(run, ranks)
    log = run.directory / "log.txt" if ranks.is_main else None
    progress = Progress(run.kind, start, task.steps, log, ranks.device)
    with StopRequest() as stop:
        for step in range(start, task.steps):
            try:
                metrics = task.train_step(step)
            except DivergenceError as error:
                raise traced(error, task, step, ranks) from None
            except Ended as reason:
                logger.warning("%s: %s", run.kind, reason)
                break
            progress.step()
            done = step + 1
            if done % task.log_every == 0 or done == task.steps:
                values = averaged(metrics, ranks)
                if not all(map(torch.isfinite, values.values())):
                    raise DivergenceError(f"{run.kind}, step {step}: not finite: {named(values)}")
                tracker.log(done, {name: float(value) for name, value in values.items()})
                progress.report(done, values)
            asked = stop.agreed(ranks, done)
            if done == task.steps:
                break
            if (asked or done % task.checkpoint.every == 0) and task.sound:
                state = task.state_dict()
                check_replicas(run.kind, done, state, ranks)
                if writer is not None:
                    writer.save(done, state)
            if asked:
                tracker.close()
                if writer is not None:
                    writer.wait()
                ranks.barrier()  # the first rank saves
                saved = "saved" if task.sound else "not saved, as its guard has doubts"
                raise Stopped(
                    f"{run.kind}: stopped on {asked.name} after step {done}, {saved}; "
                    "the same command continues"
                )
    progress.close()
    tracker.close()


def resume(task: Task, run: Run, ranks: Ranks) -> int:
    """Load the newest valid checkpoint, the same on all ranks; returns the number of steps done."""
    found = ranks.gather(checkpoint.latest(run.directory) if ranks.is_main else None)[0]
    if found is None:
        return 0
    task.load_state_dict(checkpoint.load(found))
    if ranks.is_main:
        logger.info("%s: resumed at step %d from %s", run.kind, found.step, found.path)
    return found.step


def add_share(totals: dict[str, Tensor], values: Mapping[str, Tensor | None], shares: int) -> None:
    """Add the metrics of one of ``shares`` forward passes to their mean."""
    for name, value in values.items():
        if value is not None:
            part = value.detach() / shares
            totals[name] = totals[name] + part if name in totals else part


def averaged(metrics: dict[str, float | Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Every metric's mean over ranks, with one collective."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in metrics.values()])
    return dict(zip(metrics, ranks.mean(values.to(ranks.device)).cpu(), strict=True))
