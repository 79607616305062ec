"""The worker's front door: ``python -m qdm_pipeline.launch.worker RUN.json``, once for each rank."""

import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

from qdm_pipeline.files import write_atomic
from qdm_pipeline.launch.jobs import JOBS
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run

PR_SET_PDEATHSIG = 1


class _ErrorFile(ErrorHandler):
    """The agent's error file, with the time in nanoseconds: which rank failed first is the question."""

    def record_exception(self, e: BaseException) -> None:
        extra = {
            "py_callstack": traceback.format_exc(),
            "timestamp": str(int(time.time())),
            "nanoseconds": str(time.time_ns()),
            "type": type(e).__name__,
            "text": str(e),
        }
        content = json.dumps({"message": {"message": f"{type(e).__name__}: {e}", "extraInfo": extra}})
        write_atomic(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), content)


def die_with_parent() -> None:
    """Ask Linux to end this process when the agent dies, however it dies; no effect elsewhere."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def compute_exactly() -> None:
    """Have a GPU do the same sums in the same order again, so that a resumed run is the uninterrupted one.

    What has no such form is done all the same, with torch's warning. Before anything runs on the GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it before it is written
    torch.backends.cudnn.benchmark = False


def main(file: Path) -> None:
    """Do this rank's share of the job that ``file`` describes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the agent passes Ctrl-C on; it alone has something to say
    die_with_parent()
    faulthandler.register(signal.SIGUSR2)  # the agent asks a rank that does not move where it stands
    run = Run.read(file)
    if torch.cuda.is_available():
        compute_exactly()
    ranks = Ranks.from_environment()
    logging.basicConfig(level=logging.INFO if ranks.is_main else logging.WARNING, format="%(message)s")
    if ranks.device.type == "cpu":
        torch.set_num_threads(1)
    JOBS[run.kind](run, ranks)
    ranks.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        record(main, _ErrorFile())(Path(sys.argv[1]))
    except Exception:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            raise
        sys.exit(1)  # the agent reads the error file and shows the stack of the rank that failed first
