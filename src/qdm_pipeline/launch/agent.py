"""Start the workers of a job from inside a pipeline node, wait for them, and hand back what they made."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from qdm_pipeline.errors import DivergenceError, InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.world import WorldSize, describe, processes
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.trackers import open_tracker

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SHUTDOWN_SECONDS = 5


class WorkerError(RuntimeError):
    """A rank failed: the message says which, how, and shows its own traceback."""


def run_job(run: Run, world_size: WorldSize) -> Handle:
    """Do a job with ``world_size`` processes, or find it done already.

    Raises `InputError` or `DivergenceError` as the worker raised it, `WorkerError` for any other failure of
    a rank, and `KeyboardInterrupt` or `SystemExit` after a signal; in every case no worker is left.
    """
    if (result := run.result()) is not None:
        logger.info("%s: already complete, reused (%s)", run.kind, run.directory)
        open_tracker(run, Ranks()).close()  # the curves belong to this run's record as well
        return result
    count = processes(world_size)
    logger.info("%s: starting %s in %s", run.kind, describe(world_size), run.directory)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # torch 2.13 hangs or fails on restarts otherwise
    with _own_signal_handlers(), tempfile.TemporaryDirectory(prefix="qdm_pipeline_") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle=",".join(s.name for s in SIGNALS),
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "qdm_pipeline.launch.worker", str(run.file))
        except ChildFailedError as error:
            raise _explain(run, error.failures) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None
    result = run.result()
    if result is None:
        raise WorkerError(
            f"{run.kind}: the workers ended without an error but left no result in {run.directory}"
        )
    return result


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """The agent installs handlers and leaves them there; give Kedro back its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(run: Run, failures: dict[int, ProcessFailure]) -> Exception:
    """One exception for all failed ranks, led by the first that raised (the others lost a peer)."""
    raised = {rank: _details(failure) for rank, failure in failures.items() if _details(failure)}
    if not raised:
        return WorkerError(f"{run.kind}: {_summary(failures)}; settings in {run.file}")
    first = raised[min(raised, key=lambda rank: int(raised[rank]["nanoseconds"]))]
    for kind in (InputError, DivergenceError):
        if first["type"] == kind.__name__:
            return kind(first["text"])
    return WorkerError(f"{run.kind}: {_summary(failures)}; settings in {run.file}\n{first['py_callstack']}")


def _details(failure: ProcessFailure) -> dict[str, str]:
    message = failure.error_file_data["message"]
    return message["extraInfo"] if isinstance(message, dict) else {}


def _summary(failures: dict[int, ProcessFailure]) -> str:
    def describe(failure: ProcessFailure) -> str:
        if details := _details(failure):
            return f"raised {details['type']}"
        how = f"was ended by {signal.Signals(-failure.exitcode).name}"
        return how if failure.exitcode < 0 else f"exited with code {failure.exitcode}"

    return ", ".join(f"rank {rank} {describe(failure)}" for rank, failure in sorted(failures.items()))
