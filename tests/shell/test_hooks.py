"""Before a run: inputs are there; of several nodes the first runs the pipeline, the others lend processes."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from kedro.framework.session.session import _create_hook_manager
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro.pipeline import Pipeline, node, pipeline

from qdm_pipeline.datasets import DirectoryDataset
from qdm_pipeline.errors import InputError
from qdm_pipeline.hooks import InputHook
from qdm_pipeline.launch import nodes
from qdm_pipeline.launch.nodes import lead
from qdm_pipeline.launch.settings import ALONE
from qdm_pipeline.settings import HOOKS


def begin(monkeypatch: pytest.MonkeyPatch, world_size: int | str, **environ: str) -> None:
    """What happens before a pipeline run, with all hooks of the project."""
    for name, value in environ.items():
        monkeypatch.setenv(f"QDM_{name}", value)
    catalog = DataCatalog(
        {
            "params:launch": MemoryDataset(replace(ALONE, nodes=None)),
            "params:world_size": MemoryDataset(world_size),
        }
    )
    manager = _create_hook_manager()
    for hook in HOOKS:
        manager.register(hook)
    manager.hook.before_pipeline_run(run_params={}, pipeline=Pipeline([]), catalog=catalog)


def test_another_node_follows_and_does_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(nodes, "follow", lambda *arguments: asked.append(arguments) or 7)
    with pytest.raises(SystemExit, match="7"):  # the hook of MLflow would fail here
        begin(monkeypatch, 6, NODES="3", NODE="1", ENDPOINT="localhost:1")
    (place, count, _) = asked[0]
    assert (place.nodes, place.leads, count) == (3, False, 2)


def test_a_wrong_world_size_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="world_size: found 5, must be auto or a multiple of the 2 nodes"):
        begin(monkeypatch, 5, NODES="2", NODE="1", ENDPOINT="localhost:1")


def test_an_endpoint_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"launch.endpoint: cannot wait for other nodes at localhost:{port}"
        ):
            begin(monkeypatch, 2, NODES="2", NODE="0", ENDPOINT=f"localhost:{port}")
    assert lead.cache_info().currsize == 0


def test_a_missing_input_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    catalog = DataCatalog({"folder": DirectoryDataset(path=str(tmp_path / "no"), must_exist=True)})
    with pytest.raises(DatasetError, match="no: no such folder"):
        InputHook().before_pipeline_run(pipeline([node(len, "folder", "size", name="count")]), catalog)
