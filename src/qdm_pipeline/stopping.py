"""A request to stop, made to any rank, that all ranks heed after the same step."""

import signal
import time
from types import FrameType, TracebackType

import torch

from qdm_pipeline.ranks import Ranks

ASKING = (signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1: what Slurm is told to send ahead of the time limit
EVERY = 0.5  # seconds between agreements: one takes about a millisecond over gloo


class Stopped(Exception):
    """A training was asked to stop; its message says where it stands and what continues it."""


class StopRequest:
    """Within ``with``, a signal that asks to stop is noted instead of ending the process.

    Outside there is nothing to save, and the signal does what it always does.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._next = 0
        self._step: int | None = None  # of the last agreement
        self._time = time.monotonic()

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def agreed(self, ranks: Ranks, step: int) -> signal.Signals | None:
        """The signal that any rank has got: every rank returns the same after the same ``step``.

        Call it after each step on each rank. Alone it answers at once; together the ranks ask each other
        about twice a second, after a number of steps that the slowest rank's last steps decide.
        """
        if ranks.world > 1:
            if step < self._next:
                return None
            now = time.monotonic()
            pace = (now - self._time) / (1 if self._step is None else step - self._step)
            asked, slowest = ranks.most(torch.tensor([self._asked, pace], dtype=torch.float64)).tolist()
            self._next = step + max(1, int(EVERY / max(slowest, 1e-9)))
            self._step, self._time = step, now
        else:
            asked = self._asked
        return signal.Signals(int(asked)) if asked else None
