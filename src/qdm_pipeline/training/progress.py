"""How far a training is: one live line on a terminal, and plain lines in ``log.txt`` beside the run."""

import logging
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

logger = logging.getLogger(__name__)

SHOWN = 3  # metrics in the live line


class Progress:
    """Steps ``start`` to ``steps`` of a job; silent where ``file`` is None (all ranks but the first)."""

    def __init__(self, kind: str, start: int, steps: int, file: Path | None, device: torch.device) -> None:
        self.start, self.steps, self.file, self.device = start, steps, file, device
        self.done = start
        self.begun = time.monotonic()
        self.bar = tqdm(
            desc=kind, initial=start, total=steps, unit="step", mininterval=0.5, disable=file is None,
            file=sys.stderr, dynamic_ncols=True,
        )  # fmt: skip

    def step(self) -> None:
        """One more step is done."""
        self.done += 1
        self.bar.update()

    def report(self, done: int, metrics: dict[str, Tensor]) -> None:
        """Show some metrics in the live line; write all, with rate, ETA and memory, to the file."""
        if self.file is None:
            return
        memory = f"{peak_memory(self.device) / 2**30:.2f} GiB"
        self.bar.set_postfix_str(f"{named(dict(list(metrics.items())[:SHOWN]))}, {memory}")
        rate = (done - self.start) / max(time.monotonic() - self.begun, 1e-9)
        eta = tqdm.format_interval((self.steps - done) / rate)
        clock = time.strftime("%Y-%m-%d %H:%M:%S")
        line = (
            f"{clock} step {done}/{self.steps}, {rate:.3g} steps/s, ETA {eta}, {memory}: {named(metrics)}\n"
        )
        try:
            with self.file.open("a") as stream:
                stream.write(line)
        except OSError as error:  # a log is no reason to end a training
            logger.warning("%s: not written (%s)", self.file, error.strerror)

    def close(self) -> None:
        """Leave the live line as it is."""
        self.bar.close()


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held: on its GPU if it has one, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def named(metrics: dict[str, Tensor]) -> str:
    """Metrics as a person reads them."""
    return ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
