"""The process that decodes: ``python -m qdm_pipeline.video.decode_child MIB``, one JSON job a line on stdin.

Video files are other people's bytes in the hands of a large C library, so they are opened here, where a
crash, a hang or a hunger for memory ends one small process and costs one file. Answers on stdout: for every
clip a line ``{"start", "shape"}`` and its pixels; then a line ``{"reason"}``, null if all went well.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import av

from qdm_pipeline.video.decode import Plan, decode_clips
from qdm_pipeline.video.picture import BadVideo

PR_SET_PDEATHSIG = 1


def main(mebibytes: int) -> None:
    """Do jobs until stdin ends or memory did not suffice, which leaves a process in no state to go on."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else prints must not come between
    av.logging.set_level(av.logging.PANIC)
    _bind(mebibytes)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            _answer(answers, job)
        except BadVideo as error:
            _say(answers, {"reason": str(error)})
        except MemoryError:
            _say(answers, {"reason": f"needs more than {mebibytes} MiB of memory"})
            return
        except Exception as error:  # one file never costs another
            _say(answers, {"reason": f"unreadable ({type(error).__name__}: {error})"})
        else:
            _say(answers, {"reason": None})


def _answer(answers: BinaryIO, job: dict[str, Any]) -> None:
    for clip in decode_clips(Path(job["file"]), Plan(**job["plan"])):
        rest = clip.pixels.data.cast("B")
        _say(answers, {"start": clip.start, "shape": clip.pixels.shape})
        while rest:
            rest = rest[answers.write(rest) :]


def _say(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")


def _bind(mebibytes: int) -> None:
    """Die with the parent, let the address space grow by ``mebibytes`` (both on Linux only), dump no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hanging file must not outlive the run
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]))
