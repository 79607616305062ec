"""Where this process stands among machines that work together: how many they are, and which of them leads."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from qdm_pipeline.errors import InputError
from qdm_pipeline.launch.settings import LaunchSettings

PORT = 29400  # of torchrun and Kubeflow as well


@dataclass(frozen=True)
class Place:
    """This node among ``nodes``; the first one ``leads`` and is reached at ``host:port``."""

    nodes: int = 1
    leads: bool = True
    host: str = "localhost"
    port: int = 0


@dataclass(frozen=True)
class _Described:
    nodes: int | None = None
    node: int | None = None
    endpoint: str | None = None


def find_place(settings: LaunchSettings, environ: Mapping[str, str] = os.environ) -> Place:
    """The place that settings or, where they say nothing, the environment describes.

    In this order: the settings; ``QDM_NODES``, ``QDM_NODE`` (this node's number, from 0), ``QDM_ENDPOINT``;
    the ``PET_`` variables of torchrun, which Kubeflow sets; those of a step of Slurm. Without a number the
    node that owns the endpoint's address leads. Raises `InputError` for what is missing or makes no sense.
    """
    outer = _Described() if settings.nodes == 1 else _kubeflow(environ) or _slurm(environ, settings)
    nodes = settings.nodes or _number(environ, "QDM_NODES") or outer.nodes or 1
    if nodes == 1:
        return Place()
    endpoint = settings.endpoint or environ.get("QDM_ENDPOINT") or outer.endpoint
    if endpoint is None:
        raise InputError(
            f"launch.endpoint: missing; {nodes} nodes need HOST:PORT of the first one here or in QDM_ENDPOINT"
        )
    host, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", str(PORT))
    if not port.isdigit():
        raise InputError(f"launch.endpoint: found {endpoint!r}, wanted HOST:PORT")
    node = _number(environ, "QDM_NODE")
    node = outer.node if node is None else node
    if node is not None and not 0 <= node < nodes:
        raise InputError(f"QDM_NODE (or Slurm, Kubeflow): found node {node} of {nodes}; numbers start at 0")
    return Place(nodes, _is_here(host) if node is None else node == 0, host, int(port))


def _kubeflow(environ: Mapping[str, str]) -> _Described | None:
    if "PET_NNODES" not in environ:
        return None
    host, port = environ.get("PET_MASTER_ADDR"), environ.get("PET_MASTER_PORT", str(PORT))
    endpoint = environ.get("PET_RDZV_ENDPOINT") or (f"{host}:{port}" if host else None)
    return _Described(_number(environ, "PET_NNODES"), _number(environ, "PET_NODE_RANK"), endpoint)


def _slurm(environ: Mapping[str, str], settings: LaunchSettings) -> _Described:
    """The step that srun has started; two jobs on one node get different ports."""
    if "SLURM_STEP_NODELIST" not in environ:
        allocated = _number(environ, "SLURM_NNODES") or 1
        if allocated > 1 and settings.nodes is None and "QDM_NODES" not in environ:
            raise InputError(
                f"SLURM_NNODES: this allocation has {allocated} nodes but srun did not start this command; "
                "type srun --ntasks-per-node=1 kedro run ..., or set launch.nodes=1"
            )
        return _Described()
    nodes, tasks = _number(environ, "SLURM_STEP_NUM_NODES"), _number(environ, "SLURM_STEP_NUM_TASKS")
    if nodes != tasks:
        raise InputError(
            f"srun: started {tasks} tasks on {nodes} nodes; one a node is right (--ntasks-per-node=1), "
            "which starts its own processes: set world_size"
        )
    port = PORT + int(environ["SLURM_JOB_ID"]) % 1000
    first = first_host(environ["SLURM_STEP_NODELIST"])
    return _Described(nodes, _number(environ, "SLURM_NODEID"), f"{first}:{port}")


def first_host(hosts: str) -> str:
    """The first of Slurm's compressed list: ``gpu[003-005,9],login1`` begins with ``gpu003``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else hosts)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    if (text := environ.get(name)) is None:
        return None
    if not text.isdigit():
        raise InputError(f"{name}: found {text!r}, must be a whole number")
    return int(text)


def _is_here(host: str) -> bool:
    """Whether ``host`` is an address of this machine: only then a socket can be bound to it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise InputError(f"launch.endpoint: the host {host!r} is not known here") from None
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
    return True
