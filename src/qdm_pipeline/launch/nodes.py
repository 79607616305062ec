"""Several machines, one command: the first node runs the pipeline, the others lend its jobs their processes.

The first node keeps a small TCP store at its endpoint. It says there which job is on; the other nodes watch
it, join the job's rendezvous, report what failed, and end when it ends. They write nothing. All nodes see the
project's files at the same paths. A node that has lost the first one waits for it to be started again.
"""

import atexit
import json
import logging
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from torch.distributed import DistError, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousError

from qdm_pipeline.errors import InputError
from qdm_pipeline.launch.elastic import Failure, Interrupted, meeting, open_store, summary, work
from qdm_pipeline.launch.place import Place
from qdm_pipeline.launch.settings import LaunchSettings

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds
FAREWELL = 5.0  # seconds in which the other nodes hear that the first one ends
IDLE = {"job": 0, "file": None, "end": None}


class Lead:
    """The first node's side of the store."""

    def __init__(self, place: Place) -> None:
        self.place = place
        try:
            self.store = open_store(place.host, place.port, serve=True)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"launch.endpoint: cannot wait for other nodes at {place.host}:{place.port} ({error})"
            ) from None
        self.job = 0
        self.status = 0  # that the other nodes end with
        self._say(file=None)
        atexit.register(self._end)

    def announce(self, file: Path) -> str:
        """Call the other nodes to a job; returns the name of its rendezvous."""
        self.job += 1
        self._say(file=str(file.resolve()))
        return f"job-{self.job}"

    def over(self) -> None:
        """The job is over; other nodes wait for the next one."""
        self._say(file=None)

    def reports(self) -> list[Failure]:
        """What failed on other nodes in this job, as far as they say so within seconds."""
        found: list[Failure] = []
        keys = [f"report/{self.job}/{node}" for node in range(1, self.place.nodes)]
        end = time.monotonic() + 2 * FAREWELL
        while keys and time.monotonic() < end:
            for key in [key for key in keys if self.store.check([key])]:
                found += [Failure(**item) for item in json.loads(self.store.get(key))]
                keys.remove(key)
            time.sleep(POLL / 5)
        return found

    def _say(self, **values: Any) -> None:
        self.store.set("state", json.dumps(IDLE | {"job": self.job} | values))

    def _end(self) -> None:
        self._say(end=self.status)
        end = time.monotonic() + FAREWELL
        while self.store.add("left", 0) < self.place.nodes - 1 and time.monotonic() < end:
            time.sleep(POLL / 5)


@cache
def lead(place: Place) -> Lead:
    """This process' side of the store, made at the first call and kept until it exits."""
    return Lead(place)


def follow(place: Place, count: int, settings: LaunchSettings) -> int:
    """Lend ``count`` processes to every job of the first node until it ends.

    Returns the first node's exit status, or 128 and the signal that has ended this one. Raises `InputError`
    if the first node does not show up within ``node_timeout``.
    """
    where, since = f"{place.host}:{place.port}", time.monotonic()
    logger.info("this node lends %d process(es) to the first one, awaited at %s", count, where)
    while time.monotonic() - since < settings.node_timeout:
        if not _listens(place):
            time.sleep(POLL)
            continue
        try:
            store = open_store(place.host, place.port, serve=False)
            return _serve(store, place, count, settings)
        except (DistError, RendezvousError) as error:
            logger.warning("the first node is gone (%s); waiting for it", str(error).split("\n")[0])
            since = time.monotonic()
    raise InputError(f"launch.endpoint: no first node at {where} within {settings.node_timeout:g} s")


def _listens(place: Place) -> bool:
    """Whether anybody is at the endpoint: cheaper, and quieter, than to let a store try."""
    try:
        socket.create_connection((place.host, place.port), timeout=5).close()
    except OSError:
        return False
    return True


def _serve(store: Store, place: Place, count: int, settings: LaunchSettings) -> int:
    done, status = 0, None
    while status is None:
        state = json.loads(store.get("state"))
        if state["file"] is not None and state["job"] != done:
            done = state["job"]
            try:
                _join(store, done, Path(state["file"]), place, count, settings)
            except Interrupted as error:  # what was saved, the first node says
                status = 128 + error.number
        else:
            status = state["end"]
            time.sleep(POLL)
    with suppress(DistError):  # the first node may have ended already
        store.add("left", 1)
    return status


def _join(store: Store, job: int, file: Path, place: Place, count: int, settings: LaunchSettings) -> None:
    def report(failures: list[Failure]) -> None:
        number = store.add(f"reports/{job}", 1)
        store.set(f"report/{job}/{number}", json.dumps([asdict(failure) for failure in failures]))

    logger.info("lending %d process(es) to %s", count, file.parent)
    name = file.parent.name
    with meeting(store, f"job-{job}", place.nodes, False, None, settings) as rendezvous:
        if not _appears(file):
            text = f"{file}: not seen on {socket.gethostname()}; all nodes need the project at the same path"
            report([Failure(-1, "does not see the run", "InputError", text)])
            return
        try:
            failures = work(file, name, count, rendezvous, settings)
        except Interrupted as error:
            with suppress(DistError):
                report(error.failures)
            raise
        report(failures)
    if said := summary(failures, settings.collective_timeout):
        logger.warning("%s: %s", name, said)


def _appears(file: Path, seconds: float = 30) -> bool:
    """Whether ``file`` is there; a network file system may show it later here than where it was written."""
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True
