"""Decoder processes seen from the run: files in, clips out in the files' order; no file can end the run."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.video.decode import Plan
from qdm_pipeline.video.picture import BadVideo

FILES_PER_PROCESS = 500  # then a fresh one, so that what a library leaks is no file's fault
CHUNK = 1 << 20


class Decoder:
    """One child process, started when it is needed and again after it ended.

    A job is handed over before its answers are asked for; meanwhile the child decodes until the pipe is full.
    """

    def __init__(self, plan: Plan, seconds: float, mebibytes: int) -> None:
        """``seconds`` may pass until a file's next clip; the process may take ``mebibytes`` of memory."""
        self.plan, self.seconds, self.mebibytes = plan, seconds, mebibytes
        self.process: subprocess.Popen[bytes] | None = None
        self.files = 0
        self._unread = bytearray()

    def send(self, file: Path) -> None:
        """Begin to decode ``file``."""
        if self.process is None:
            command = [sys.executable, "-m", "qdm_pipeline.video.decode_child", str(self.mebibytes)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._unread.clear()
        self.files += 1
        job = json.dumps({"file": str(file), "plan": asdict(self.plan)}).encode() + b"\n"
        try:
            self._pipe("stdin").write(job)
            self._pipe("stdin").flush()
        except BrokenPipeError:
            pass  # it has just died, and `clips` will say of what

    def clips(self) -> Iterator[tuple[float, Tensor]]:
        """Start in seconds and pixels uint8 [3, T, H, W] of the clips of the file that was sent.

        `BadVideo` with the reason, after the clips before it.
        """
        while "shape" in (message := self._message(deadline := time.monotonic() + self.seconds)):
            pixels = bytearray(torch.Size(message["shape"]).numel())
            self._fill(memoryview(pixels), deadline)
            video = torch.frombuffer(pixels, dtype=torch.uint8).view(message["shape"])
            yield message["start"], video.permute(3, 0, 1, 2).contiguous()
        if self.files >= FILES_PER_PROCESS or (message["reason"] or "").startswith("needs more than"):
            self.close()
        if message["reason"]:
            raise BadVideo(message["reason"])

    def close(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process, self.files = None, 0

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._unread:
            self._unread += self._read(deadline)
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _fill(self, space: memoryview, deadline: float) -> None:
        space[: len(self._unread)] = self._unread[: len(space)]
        space, self._unread = space[len(self._unread) :], self._unread[len(space) :]
        while space:
            part = self._read(deadline, len(space))
            space[: len(part)] = part
            space = space[len(part) :]

    def _read(self, deadline: float, most: int = CHUNK) -> bytes:
        out = self._pipe("stdout")
        ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            self.close()
            raise BadVideo(f"no clip within {self.seconds:g} s")
        if not (part := os.read(out.fileno(), min(most, CHUNK))):
            assert self.process is not None
            code = self.process.wait()
            self.close()
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            raise BadVideo(f"its decoder was ended by {how}")
        return part

    def _pipe(self, name: str) -> Any:
        return getattr(self.process, name)


class Decoders:
    """Several `Decoder` processes that work ahead of the reader, each on a file of its own."""

    def __init__(self, count: int, plan: Plan, seconds: float, mebibytes: int) -> None:
        self.decoders = [Decoder(plan, seconds, mebibytes) for _ in range(count)]

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for decoder in self.decoders:
            decoder.close()

    def decode(self, files: Sequence[Path]) -> Iterator[Iterator[tuple[float, Tensor]]]:
        """For each of ``files``, in order, its clips as in `Decoder.clips`; each to be read to its end."""
        count = len(self.decoders)
        for decoder, file in zip(self.decoders, files, strict=False):
            decoder.send(file)
        for number in range(len(files)):
            decoder = self.decoders[number % count]
            yield decoder.clips()
            if number + count < len(files):
                decoder.send(files[number + count])
