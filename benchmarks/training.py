"""What the trainer costs beside a bare loop, what a checkpoint costs a step, and what a second rank brings.

The predictor of the embedded example at its real size, float32, one thread a process, latents in memory:
the trainer against the same model, batch and optimizers in a bare loop (the peer; in turns, block by block);
the stall of a step by a checkpoint against the time of its writing; two ranks against one.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import report, spread
from benchmarks.presets import ROOT
from qdm_pipeline.configuration import build, plain
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.models.precision import autocast
from qdm_pipeline.presets import parameters
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.loop import train
from qdm_pipeline.training.teacher import TeacherSettings, TeacherTask
from qdm_pipeline.video.shards import ShardSet, write_shards

BLOCK, BLOCKS, BATCH = 8, 9, 32
NEVER = {"every": 10**6, "keep_last": 2, "keep_every": None}


def latents(folder: Path) -> ShardSet:
    """Latents of the example's shape, of noise: what they show costs nothing."""
    draw = torch.Generator().manual_seed(0)
    samples = [
        (
            {"latent": torch.randn(16, 3, 4, 4, generator=draw)},
            {"id": str(i), "label": i % 10, "split": "train"},
        )
        for i in range(512)
    ]
    return write_shards(folder, samples, {"classes": list(map(str, range(10)))}, 512)


def settings(**changes: Any) -> TeacherSettings:
    """Those of the example with some changed."""
    fixed = {"precision": "fp32", "batch": BATCH, "micro_batch": BATCH, "checkpoint": NEVER, "log_every": 20}
    return build(TeacherSettings, plain(parameters(ROOT, "base")["teacher"]) | fixed | changes)


class Bare:
    """What any script would do: forward, backward, clip, step; data and noise drawn as cheaply as can be."""

    def __init__(self, task: TeacherTask) -> None:
        self.task = task
        self.x0 = task.latents.gather("latent", task.rows)
        self.parameters = list(task.model.parameters())

    def step(self) -> None:
        """One optimizer step and its codebook and average."""
        task = self.task
        rows = torch.randint(len(self.x0), (BATCH,))
        x0 = self.x0[rows]
        with autocast(torch.device("cpu"), "fp32"):
            loss = task.loss(x0, torch.randn_like(x0), torch.rand(BATCH), task.condition.rows(rows)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in task.optimizer.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        task.model.quantizer.commit(0, 0)
        task.ema.update(task.model, 1000)


def overhead(shards: ShardSet, root: Path) -> None:
    """The whole loop, with its log, metrics and progress, against the bare one."""
    run = Run.create("teacher", settings(steps=BLOCK * (BLOCKS + 1)), {}, root)
    ours, bare = (
        TeacherTask(settings(steps=BLOCK * (BLOCKS + 1)), shards, Ranks()),
        Bare(TeacherTask(settings(), shards, Ranks())),
    )
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    take, began = ours.train_step, [time.perf_counter()]

    def step(number: int) -> Any:
        if number and number % BLOCK == 0:  # between two steps of the loop: the other one's turn
            seconds["ours"].append(time.perf_counter() - began[0])
            started = time.perf_counter()
            for _ in range(BLOCK):
                bare.step()
            seconds["peer"].append(time.perf_counter() - started)
            began[0] = time.perf_counter()
        return take(number)

    ours.train_step = step  # type: ignore[assignment, method-assign]
    train(ours, run, Ranks())
    ratios = [a / b for a, b in zip(seconds["ours"][1:], seconds["peer"][1:], strict=True)]
    values = {name: median(times[1:]) / BLOCK * 1000 for name, times in seconds.items()}
    report(f"trainer, batch {BATCH}", "ms a step", values, median(ratios), spread(ratios), "<= 1.03")


def stall(shards: ShardSet, root: Path) -> None:
    """How long `save` holds a step, against how long the write takes, of 16 times the example's state."""
    state = TeacherTask(settings(), shards, Ranks()).state_dict()
    many = {str(copy): state for copy in range(16)}
    held, written = [], []
    writer = checkpoint.Writer(root / "stall", Retention(every=1, keep_last=2, keep_every=None))
    for step in range(1, 8):
        started = time.perf_counter()
        writer.save(step, many)
        held.append(time.perf_counter() - started)
        writer.wait()
        written.append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(held, written, strict=True)]
    values = {"ours": median(held), "peer": median(written)}
    report("checkpoint of 460 MB", "s a step is held", values, median(ratios), spread(ratios), "<= 0.05")


def ranks(shards: ShardSet, root: Path) -> None:
    """Steps a second of two ranks over those of one, both with ``BATCH`` samples a rank."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    inputs = {"latents": Handle("latents", shards.directory, shards.digest)}
    for round_ in range(3):
        for world in rates:
            made = settings(steps=30, batch=BATCH * world, seed=round_, log_every=10)
            run = Run.create("teacher", made, inputs, root / "ranks")
            run_job(run, world)
            lines = (run.directory / "log.txt").read_text().splitlines()
            rates[world].append(BATCH * world * float(lines[-1].split(" steps/s")[0].split()[-1]))
            shutil.rmtree(run.directory)
    values = {"ours": median(rates[2]), "peer": median(rates[1])}
    ratios = [two / one for two, one in zip(rates[2], rates[1], strict=True)]
    report("two ranks against one", "clips a second", values, median(ratios), spread(ratios), ">= 1.7")


def main() -> None:
    """All rows; each in a process of its own, so that none warms another's caches."""
    rows = {"overhead": overhead, "stall": stall, "ranks": ranks}
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            rows[sys.argv[1]](latents(Path(folder) / "latents"), Path(folder))
        return
    for name in rows:
        subprocess.run([sys.executable, "-m", "benchmarks.training", name], check=True)


if __name__ == "__main__":
    main()
