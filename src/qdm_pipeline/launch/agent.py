"""Start the workers of a job from inside a pipeline node, wait for them, and hand back what they made."""

import logging
import signal
from typing import NoReturn

from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from qdm_pipeline.errors import DivergenceError, InputError, WorkerError
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.elastic import Failure, Interrupted, meeting, open_store, summary, work
from qdm_pipeline.launch.nodes import lead
from qdm_pipeline.launch.place import Place, find_place
from qdm_pipeline.launch.settings import ALONE, LaunchSettings
from qdm_pipeline.launch.world import WorldSize, describe, processes
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.stopping import Stopped
from qdm_pipeline.training.trackers import open_tracker

logger = logging.getLogger(__name__)


def run_job(run: Run, world_size: WorldSize, launch: LaunchSettings = ALONE) -> Handle:
    """Do a job with ``world_size`` processes over all nodes, or find it done already.

    A world size of 1 is a process of this node, the first one. Raises `InputError` or `DivergenceError` as
    the worker raised it, `WorkerError` for any other failure of a rank, `KeyboardInterrupt` after Ctrl-C, and
    `SystemExit` (128 + the signal) after another signal; in every case no worker is left.
    """
    if (result := run.result()) is not None:
        logger.info("%s: already complete, reused (%s)", run.kind, run.directory)
        open_tracker(run, Ranks()).close()  # the curves belong to this run's record as well
        return result
    place = Place() if world_size == 1 else find_place(launch)
    logger.info("%s: starting %s in %s", run.kind, describe(world_size, place.nodes), run.directory)
    try:
        failures = _do(run, processes(world_size, place.nodes), place, launch)
    except Interrupted as error:
        _stop(run, error.number, error.failures)
    if failures:
        first = min((failure for failure in failures if failure.type), key=_time, default=None)
        if first is not None and first.type == Stopped.__name__:  # a signal that another process got
            _stop(run, signal.SIGTERM, failures)
        raise _explain(run, first, failures, launch)
    result = run.result()
    if result is None:
        raise WorkerError(
            f"{run.kind}: the workers ended without an error but left no result in {run.directory}"
        )
    return result


def _do(run: Run, count: int, place: Place, launch: LaunchSettings) -> list[Failure]:
    if place.nodes == 1:
        store = open_store("localhost", 0, serve=True)
        with meeting(store, "job", 1, True, "localhost", launch) as rendezvous:
            return work(run.file, run.kind, count, rendezvous, launch)
    if not place.leads:
        raise InputError("QDM_NODE: jobs are started on the first node (0); other nodes follow it")
    first = lead(place)
    name, status, first.status = first.announce(run.file), first.status, 1
    try:
        with meeting(first.store, name, place.nodes, True, place.host, launch) as rendezvous:
            failures = work(run.file, run.kind, count, rendezvous, launch)
    except RendezvousTimeoutError:
        raise WorkerError(
            f"{run.kind}: {place.nodes} nodes did not come to {place.host}:{place.port} within "
            f"{launch.node_timeout:g} s"
        ) from None
    finally:
        first.over()
    if failures or run.result() is None:
        return failures + first.reports()
    first.status = status
    return []


def _stop(run: Run, number: signal.Signals, failures: list[Failure]) -> NoReturn:
    """End this process as the signal wants; who asked to stop is told what the workers saved."""
    told = [failure.text for failure in failures if failure.type == Stopped.__name__]
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    logger.warning(told[0] if told else f"{run.kind}: ended by {number.name}, nothing was saved after it")
    raise SystemExit(128 + number)


def _time(failure: Failure) -> int:
    return failure.nanoseconds


def _explain(run: Run, first: Failure | None, failures: list[Failure], launch: LaunchSettings) -> Exception:
    """One exception for all failed ranks, led by the first that raised (the others lost a peer)."""
    message = f"{run.kind}: {summary(failures, launch.collective_timeout)}; settings in {run.file}"
    if first is None:
        return WorkerError(message)
    for kind in (InputError, DivergenceError):
        if first.type == kind.__name__:
            return kind(first.text)
    return WorkerError(f"{message}\n{first.stack}")
