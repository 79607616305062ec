"""torch elastic's agent with manners of its own: it names who is missing, asks before it kills, keeps rank 0.

What torch 2.13's agent does otherwise: after one rank has failed it gives the others 30 s to heed SIGTERM,
which a stopped process never does; a failure on one node is not told to the others; ranks are numbered by
address, so that rank 0 may lie on any node.
"""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
)

from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.stopping import ASKING, Stopped

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
FINAL = (Stopped.__name__, "InputError", "DivergenceError")  # would come again
PATIENCE = 5.0  # seconds in which ranks that waited for the same one all give up
KILLED_WITHIN = 5  # seconds
READ = timedelta(seconds=60)  # that a value in a store is waited for
Process = subprocess.Popen[bytes]
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "in uninterruptible sleep"}


@dataclass(frozen=True)
class Failure:
    """What became of a rank; ``type`` and the rest are of the exception that it raised, if it did."""

    rank: int
    how: str
    type: str = ""
    text: str = ""
    stack: str = ""
    nanoseconds: int = 0
    missing: bool = False  # it was still there when others had given up waiting

    @property
    def waited(self) -> bool:
        """Whether it failed because another rank did not come to a collective."""
        told = self.type in ("RuntimeError", "DistBackendError") and re.search("timed? ?out", self.text, re.I)
        return bool(told) or self.how.endswith("SIGABRT")  # so NCCL's watchdog ends its process


class Interrupted(Exception):
    """The agent got a signal; ``failures`` say what the ranks made of it."""

    def __init__(self, number: signal.Signals, failures: list[Failure]) -> None:
        super().__init__(number.name)
        self.number, self.failures = number, failures


class Rendezvous(DynamicRendezvousHandler):
    """Where agents meet. The leading node's ranks come first, so that rank 0 is where the pipeline runs."""

    leads = True

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet, and number the nodes anew."""
        met = super().next_rendezvous()
        store = PrefixStore("leader_first", met.store)
        if self.leads:
            store.set("rank", str(met.rank))
        leader = int(store.get("rank"))
        rank = 0 if self.leads else met.rank + (met.rank < leader)
        bootstrap = RendezvousStoreInfo.build(rank, store, self._this_node.addr)
        return RendezvousInfo(met.store, rank, met.world_size, bootstrap)


def open_store(host: str, port: int, *, serve: bool) -> TCPStore:
    """A TCP store at ``host:port`` that this process keeps or uses."""
    return TCPStore(host, port, None, serve, READ, wait_for_workers=False, multi_tenant=serve)


@contextmanager
def meeting(
    store: Store, name: str, nodes: int, leads: bool, address: str | None, settings: LaunchSettings
) -> Iterator[Rendezvous]:
    """A rendezvous of all nodes in ``store``; when one leaves it for good it is closed for all of them."""
    rendezvous = Rendezvous.from_backend(
        name, store, C10dRendezvousBackend(store, name), nodes, nodes, address,
        RendezvousTimeout(join=timedelta(seconds=settings.node_timeout)),
        keep_alive_interval=2, keep_alive_max_attempt=5,
    )  # fmt: skip
    rendezvous.leads = leads
    comes_back = False
    try:
        yield rendezvous
    except Interrupted:
        comes_back = not leads  # perhaps
        raise
    finally:
        if not comes_back:
            rendezvous.shutdown()


def work(
    file: Path, name: str, count: int, rendezvous: Rendezvous, settings: LaunchSettings
) -> list[Failure]:
    """Start ``count`` ranks of the job in ``file`` on this node and wait for them; returns what failed.

    Raises `Interrupted` on a signal. In every case no worker is left.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # torch 2.13 hangs or fails on restarts otherwise
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in SIGNALS)
    os.environ["QDM_COLLECTIVE_TIMEOUT"] = str(settings.collective_timeout)
    with _own_signal_handlers(), tempfile.TemporaryDirectory(prefix="qdm_pipeline_") as logs:
        spec = WorkerSpec(
            role=name,
            local_world_size=count,
            entrypoint=sys.executable,
            args=("-u", "-m", "qdm_pipeline.launch.worker", str(file)),
            rdzv_handler=rendezvous,
            max_restarts=settings.max_restarts,
        )
        agent = _Agent(spec, logs, settings)
        try:
            return agent.failures() if agent.run().is_failed() else []
        except SignalException as error:
            raise Interrupted(error.sigval, agent.failures()) from None
        except RendezvousClosedError:  # another node gave up while this one was about to start again
            return agent.failures()


class _Agent(LocalElasticAgent):
    def __init__(self, spec: WorkerSpec, logs: str, settings: LaunchSettings) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=logs), exit_barrier_timeout=60)
        self._settings = settings
        self._ended: dict[int, str] = {}  # pid: the state of a process that was ended from here

    def failures(self) -> list[Failure]:
        """What has become of each rank of this node that did not succeed; missing ones only if waited for."""
        found = []
        for rank, (process, error_file) in self._ranks().items():
            if (state := self._ended.get(process.pid)) is not None:
                where = f"process {process.pid} on {socket.gethostname()} is {state}"
                found.append(Failure(rank, f"did not come ({where})", missing=True))
            elif (code := process.poll()) != 0 and code is not None:
                found.append(_failure(rank, code, Path(error_file)))
        return found

    def _ranks(self) -> dict[int, tuple[Process, str]]:
        context: Any = self._pcontext
        if context is None:
            return {}
        ranks = {worker.local_rank: worker.global_rank for worker in self._worker_group.workers}
        return {
            ranks[local]: (handler.proc, context.error_files[local])
            for local, handler in context.subprocess_handlers.items()
        }

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        given_up = self._rdzv_handler.is_closed()  # by another node
        failures = self.failures()
        if failures or given_up:
            patient = given_up or any(
                failure.waited or failure.type == Stopped.__name__ for failure in failures
            )
            self._end_ranks(PATIENCE if patient else 0)
            failures = self.failures()
            if given_up or any(failure.type in FINAL for failure in failures):
                self._remaining_restarts = 0
            elif self._remaining_restarts > 0:
                logger.warning(
                    "%s: %s; starting again from the last checkpoint (restart %d of %d)",
                    worker_group.spec.role,
                    summary(failures, self._settings.collective_timeout),
                    self._settings.max_restarts - self._remaining_restarts + 1,
                    self._settings.max_restarts,
                )
        return super()._monitor_workers(worker_group)

    def _end_ranks(self, patience: float) -> None:
        processes = [process for process, _ in self._ranks().values()]
        _wait(processes, patience, _moves)
        running = [process for process in processes if process.poll() is None]
        self._ended |= {process.pid: _state(process.pid) for process in running}
        if patience:
            for process in running:
                process.send_signal(signal.SIGUSR2)  # it prints its stack
            _wait(running, 0.5, _moves)
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _wait(running, KILLED_WITHIN, _lives)

    def _invoke_run(self, role: str = "") -> RunResult:
        try:
            return super()._invoke_run(role)
        except SignalException as caught:
            if caught.sigval in ASKING:  # only the ranks themselves: their helpers are still needed
                running = [process for process, _ in self._ranks().values() if process.poll() is None]
                for process in running:
                    process.send_signal(caught.sigval)
                _wait(running, self._settings.save_timeout, _lives)
            raise

    def _shutdown(self, *_: Any, **__: Any) -> None:
        """Whoever is still here was asked before or has nothing to save."""
        super()._shutdown(signal.SIGKILL)


def summary(failures: list[Failure], timeout: float) -> str:
    """All ranks that failed in one line. Missing is only who was waited for, and it is the cause."""
    waited = any(failure.waited for failure in failures)
    missing = [failure for failure in failures if failure.missing and waited]
    others = [failure for failure in failures if not failure.missing]
    missing = [
        replace(failure, how=f"{failure.how} though others waited {timeout:g} s") for failure in missing
    ]
    return ", ".join(f"rank {failure.rank} {failure.how}" for failure in missing + others)


def _failure(rank: int, code: int, error_file: Path) -> Failure:
    if error_file.exists():
        told = json.loads(error_file.read_text())["message"]["extraInfo"]
        text, stack = told["text"], told["py_callstack"]
        return Failure(rank, f"raised {told['type']}", told["type"], text, stack, int(told["nanoseconds"]))
    if code < 0:
        return Failure(rank, f"was ended by {signal.Signals(-code).name}")
    return Failure(rank, f"exited with code {code}")


def _wait(processes: list[Process], seconds: float, awaited: Callable[[Process], bool]) -> None:
    end = time.monotonic() + seconds
    while any(map(awaited, processes)) and time.monotonic() < end:
        time.sleep(0.05)


def _lives(process: Process) -> bool:
    return process.poll() is None


def _moves(process: Process) -> bool:
    return _lives(process) and _state(process.pid) != STATES["T"]


def _state(pid: int) -> str:
    """What a process is doing, as Linux tells it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        letter = ""
    return STATES.get(letter, "running")


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """The agent installs handlers and leaves them there; give the caller back its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
