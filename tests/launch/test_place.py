"""Which node this is: from settings, from QDM_ variables, from Kubeflow's, from Slurm's."""

from dataclasses import replace

import pytest

from qdm_pipeline.errors import InputError
from qdm_pipeline.launch.place import Place, find_place, first_host
from qdm_pipeline.launch.settings import ALONE

OPEN = replace(ALONE, nodes=None)
KUBEFLOW = {
    "PET_NNODES": "4",
    "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "run-node-0-0.run",
    "PET_MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_JOB_ID": "1007",
    "SLURM_NNODES": "3",
    "SLURM_STEP_NODELIST": "gpu[007-008,012]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NODEID": "0",
}


def test_one_node_needs_nothing() -> None:
    assert find_place(OPEN, {}) == find_place(ALONE, SLURM | KUBEFLOW) == Place()
    assert find_place(OPEN, {"PET_NNODES": "1"}) == Place()


def test_nodes_by_hand() -> None:
    given = {"QDM_NODES": "2", "QDM_ENDPOINT": "10.0.0.1:1234"}
    assert find_place(OPEN, given | {"QDM_NODE": "0"}) == Place(2, True, "10.0.0.1", 1234)
    assert find_place(OPEN, given | {"QDM_NODE": "1"}) == Place(2, False, "10.0.0.1", 1234)
    settings = replace(OPEN, nodes=3, endpoint="there")
    assert find_place(settings, given | {"QDM_NODE": "2"}) == Place(3, False, "there", 29400)


def test_without_a_number_the_owner_of_the_endpoint_leads() -> None:
    assert find_place(replace(OPEN, nodes=2, endpoint="127.0.0.1:1"), {}).leads
    assert not find_place(replace(OPEN, nodes=2, endpoint="192.0.2.1:1"), {}).leads


def test_kubeflow() -> None:
    assert find_place(OPEN, KUBEFLOW) == Place(4, False, "run-node-0-0.run", 29400)
    assert find_place(OPEN, KUBEFLOW | {"PET_NODE_RANK": "0"}).leads


def test_slurm() -> None:
    assert find_place(OPEN, SLURM) == Place(3, True, "gpu007", 29407)
    assert not find_place(OPEN, SLURM | {"SLURM_NODEID": "1"}).leads


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("rack[1-2]n[4,6-7]-ib", "rack1n4-ib"),
    ],
)
def test_the_first_of_compressed_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"QDM_NODES": "2"}, "launch.endpoint: missing; 2 nodes need HOST:PORT"),
        ({"QDM_NODES": "two"}, "QDM_NODES: found 'two', must be a whole number"),
        ({"QDM_NODES": "2", "QDM_ENDPOINT": "a:b"}, "launch.endpoint: found 'a:b', wanted HOST:PORT"),
        ({"QDM_NODES": "2", "QDM_ENDPOINT": "a:1", "QDM_NODE": "2"}, "found node 2 of 2"),
        ({"QDM_NODES": "2", "QDM_ENDPOINT": "no.such.host.invalid:1"}, "'no.such.host.invalid' is not known"),
        ({"SLURM_NNODES": "2"}, "this allocation has 2 nodes but srun did not start this command"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "24"}, "started 24 tasks on 3 nodes; one a node is right"),
    ],
)
def test_what_makes_no_sense_is_said(environ: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        find_place(OPEN, environ)
