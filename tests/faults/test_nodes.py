"""Two agents on one machine as two nodes, and signals to any process: the same bytes as a run left alone."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.teacher import TeacherSettings
from qdm_pipeline.video.shards import write_shards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")

STEPS = 150
STARTED = []
PROGRAM = """
import logging, sys
from dataclasses import replace
from pathlib import Path
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.nodes import follow
from qdm_pipeline.launch.place import find_place
from qdm_pipeline.launch.settings import ALONE
from qdm_pipeline.run import Run

logging.basicConfig(level=logging.INFO, format="%(message)s")
launch = replace(ALONE, nodes=None, max_restarts=int(sys.argv[2]), node_timeout=300,
                 collective_timeout=int(sys.argv[3]))
place = find_place(launch)
if not place.leads:
    sys.exit(follow(place, 1, launch))
run_job(Run.read(Path(sys.argv[1])), 2, launch)
"""


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    draw = torch.Generator().manual_seed(0)
    latents = write_shards(
        folder / "latents",
        [
            (
                {"latent": torch.randn(3, 1, 2, 2, generator=draw)},
                {"id": str(index), "label": index % 2, "caption": "a dot", "split": "train"},
            )
            for index in range(24)
        ],
        {"classes": ["even", "odd"]},
        10,
    )
    settings = build(TeacherSettings, TEACHER)
    inputs = {"latents": Handle("latents", latents.directory, latents.digest)}
    return lambda name: Run.create("teacher", settings, inputs, folder / name)


TEACHER = dict(
    model=dict(
        width=16, depth=1, heads=2, patch=(1, 1, 1), attention="full", embedding_dim=8, residual_dim=0,
        quantizer=dict(kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9,
                       revival_threshold=0.1),
    ),
    schedule=dict(name="flow", shift=1.0, low=0.0, high=1.0, density="uniform"),
    optimizer=dict(
        lr=1e-3, muon_lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, clip=1.0, warmup=2, decay=True
    ),
    condition="class", condition_dropout=0.1, quantization_weight=0.5, commitment_weight=0.25,
    weight_limit=20.0, batch=4, micro_batch=2, steps=STEPS, ema=0.9, precision="fp32", recompute="nothing",
    parallel=dict(strategy="ddp", offload_teacher=False, compile=False),
    seed=3, log_every=1, checkpoint=dict(every=10, keep_last=2, keep_every=None),
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(make_run):
    """The digest of a run that nothing happened to, two ranks on one machine."""
    run = make_run("alone")
    process = start(run)
    assert process.wait(300) == 0, said(process)
    return run.result().digest


def start(run, restarts=0, node=None, port=0, timeout=10):
    """The command of one node (of the only one) in a process group; its output goes to a file."""
    place = (
        {} if node is None else {"QDM_NODES": "2", "QDM_NODE": str(node), "QDM_ENDPOINT": f"localhost:{port}"}
    )
    log = run.directory / f"log-{node}-{time.monotonic_ns()}"
    command = [sys.executable, "-c", PROGRAM, str(run.file), str(restarts), str(timeout)]
    process = subprocess.Popen(
        command, env=os.environ | place, stdout=log.open("w"), stderr=subprocess.STDOUT
    )
    process.log = log
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nobody_stays():
    yield
    while STARTED:
        STARTED.pop().kill()


def said(process):
    return "\n".join(line.rsplit("\r", 1)[-1] for line in process.log.read_text().splitlines())


def workers(run):
    """Process ids of the run's ranks, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            environment = (process / "environ").read_bytes().decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if "qdm_pipeline.launch.worker" in command and str(run.file) in command:
            variables = dict(pair.split("=", 1) for pair in environment.split("\0") if "=" in pair)
            found[int(variables["RANK"])] = int(process.name)
    return found


def step_of(run):
    rows = run.metrics()
    return int(rows[-1]["step"]) if rows else 0


def wait_until(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, said(process)
        assert time.monotonic() < end, "waited in vain\n" + said(process)
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def kill_a_node(make_run, name, victim, step):
    """Kill the agent of node ``victim`` after ``step``, start it again, and let both end."""
    run, port = make_run(name), free_port()
    nodes = [start(run, 3, node, port) for node in (0, 1)]
    wait_until(lambda: step_of(run) >= step, nodes[0])
    began = time.monotonic()
    nodes[victim].kill()
    nodes[victim].wait()
    nodes[victim] = start(run, 3, victim, port)
    assert [node.wait(300) for node in nodes] == [0, 0], "\n".join(map(said, nodes))
    assert not workers(run)
    print(f"{name}: node {victim} killed after step {step}, all over {time.monotonic() - began:.1f} s later")
    return run.result().digest


@pytest.mark.rounds(10)
def test_a_node_killed_at_any_step_that_comes_back_changes_nothing(make_run, alone, number):
    step = random.Random(number).randrange(15, STEPS - 30)
    assert kill_a_node(make_run, f"nodes-{number}", 1 - number % 2, step) == alone


def stop(make_run, name, step, target):
    """Ask a run of two ranks to stop; ``target`` says which process is asked."""
    run = make_run(name)
    process = start(run)
    wait_until(lambda: step_of(run) >= step, process)
    began = time.monotonic()
    os.kill(target(process, workers(run)), signal.SIGTERM)
    code = process.wait(30)
    seconds = time.monotonic() - began
    assert code == 128 + signal.SIGTERM, said(process)
    saved = checkpoint.latest(run.directory).step
    assert f"teacher: stopped on SIGTERM after step {saved}, saved; the same command continues" in said(
        process
    )
    assert saved == step_of(run) and seconds < 20
    assert not workers(run) and run.result() is None
    process = start(run)
    assert process.wait(300) == 0, said(process)
    assert f"resumed at step {saved} " in said(process)
    print(f"{name}: SIGTERM at step {step}, saved after {saved}, ended {seconds:.1f} s later")
    return run.result().digest


@pytest.mark.faults
@pytest.mark.rounds(10)
def test_sigterm_to_any_process_saves_and_stops(make_run, alone, number):
    step = random.Random(number).randrange(5, STEPS - 60)
    targets = [lambda process, _: process.pid, lambda _, ranks: ranks[0], lambda _, ranks: ranks[1]]
    assert stop(make_run, f"term-{number}", step, targets[number % 3]) == alone


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["agent", 0, 1])
def test_a_killed_process_ends_all_and_loses_nothing(make_run, alone, victim):
    run = make_run(f"killed-{victim}")
    process = start(run)
    wait_until(lambda: step_of(run) >= 35 and len(workers(run)) == 2, process)
    began = time.monotonic()
    os.kill(process.pid if victim == "agent" else workers(run)[victim], signal.SIGKILL)
    assert process.wait(30) == (-signal.SIGKILL if victim == "agent" else 1), said(process)
    while workers(run):
        assert time.monotonic() - began < 10, "orphans"
        time.sleep(0.05)
    print(f"{victim} killed, all gone {time.monotonic() - began:.1f} s later")
    process = start(run)
    assert process.wait(300) == 0, said(process)
    assert run.result().digest == alone


@pytest.mark.faults
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named(make_run, rank, nodes):
    run, port = make_run(f"still-{rank}-{nodes}"), free_port()
    places = [None] if nodes == 1 else [0, 1]
    processes = [start(run, 0, node, port, timeout=30) for node in places]
    wait_until(lambda: step_of(run) >= 20 and len(workers(run)) == 2, processes[0])
    began, pid = time.monotonic(), workers(run)[rank]
    os.kill(pid, signal.SIGSTOP)
    assert processes[0].wait(90) == 1
    seconds, told = time.monotonic() - began, said(processes[0])
    assert f"rank {rank} did not come (process {pid} on {socket.gethostname()} is stopped)" in told
    assert "though others waited 30 s" in told and seconds <= 45
    assert [process.wait(20) for process in processes[1:]] == [1] * (nodes - 1)
    assert not workers(run)
    print(f"rank {rank} of {nodes} node(s) stopped: named, all ended {seconds:.1f} s later (timeout 30 s)")
