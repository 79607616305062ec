"""Nodes that wait for each other in vain say so. What they do together: tests/faults/test_nodes.py."""

import atexit
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from qdm_pipeline.errors import InputError, WorkerError
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.nodes import follow, lead
from qdm_pipeline.launch.place import Place
from qdm_pipeline.launch.settings import ALONE
from qdm_pipeline.run import Run


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_no_first_node(port: int) -> None:
    with pytest.raises(InputError, match=f"no first node at localhost:{port} within 1 s"):
        follow(Place(2, False, "localhost", port), 1, replace(ALONE, node_timeout=1))


def test_no_other_node(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atexit, "register", lambda *_: None)  # it would wait for the other node to leave
    launch = replace(ALONE, nodes=2, endpoint=f"localhost:{port}", node_timeout=2)
    with pytest.raises(WorkerError, match=f"sum: 2 nodes did not come to localhost:{port} within 2 s"):
        run_job(Run.create("sum", {}, {}, tmp_path), 2, launch)
    lead.cache_clear()


def test_jobs_are_started_on_the_first_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDM_NODE", "1")
    with pytest.raises(InputError, match="jobs are started on the first node"):
        run_job(Run.create("sum", {}, {}, tmp_path), 2, replace(ALONE, nodes=2, endpoint="localhost:1"))
