"""The agent inside a node: results come back, failures name their rank, and nobody survives."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qdm_pipeline.errors import InputError, WorkerError
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import ALONE
from qdm_pipeline.run import Run

SITE = str(Path(__file__).parent / "worker_site")


@pytest.fixture(autouse=True)
def jobs_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SITE, os.environ.get("PYTHONPATH", "")]))


def test_two_ranks_work_together_and_a_finished_job_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create("sum", {}, {}, tmp_path)
    before = signal.getsignal(signal.SIGINT)
    handle = run_job(run, 2)
    assert handle.metadata == {"total": 3, "threads": 1}
    assert handle.path == run.directory
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr("qdm_pipeline.launch.agent.work", None)  # nothing is started again
    assert run_job(run, 2) == run_job(run, "auto") == handle  # whatever the number of processes


def test_the_failing_rank_speaks(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        run_job(Run.create("fail", {}, {}, tmp_path), 2)
    message = str(caught.value)
    assert "rank 1 raised ZeroDivisionError" in message
    assert "ZeroDivisionError: the second rank had [/bad] luck" in message
    assert "_rank_one_fails" in message


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="^killed: rank 1 was ended by SIGKILL; settings in"):
        run_job(Run.create("killed", {}, {}, tmp_path), 2)


def test_a_rank_that_stands_still_is_named(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        run_job(Run.create("still", {}, {}, tmp_path), 2, replace(ALONE, collective_timeout=3))
    assert re.search(
        r"^still: rank 1 did not come \(process \d+ on \S+ is stopped\) though others waited 3 s, "
        r"rank 0 raised RuntimeError; settings in ",
        str(caught.value),
    )
    assert time.monotonic() - began < 30  # not the 30 s of torch's agent on top of the timeout


@pytest.mark.faults
def test_ranks_are_started_again_as_often_as_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = run_job(Run.create("fragile", {}, {}, tmp_path), 2, replace(ALONE, max_restarts=1))
    assert made.metadata["tries"] == 2
    assert (
        "rank 1 was ended by SIGKILL; starting again from the last checkpoint (restart 1 of 1)" in caplog.text
    )


def test_bad_input_stays_bad_input_and_is_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"^clips/a.mp4: not a video$"):
        run_job(Run.create("bad", {}, {}, tmp_path), 1, replace(ALONE, max_restarts=3))
    assert "starting again" not in caplog.text


@pytest.mark.faults
def test_a_rank_that_hangs_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError, match=r"^lost: rank 1 did not come \(process \d+ on \S+ is running\)"):
        run_job(Run.create("lost", {}, {}, tmp_path), 2, replace(ALONE, collective_timeout=3))
    assert "in _lost_in_thought" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_parent_leaves_no_worker(tmp_path: Path, number: signal.Signals, status: int) -> None:
    run = Run.create("sleep", {}, {}, tmp_path)
    program = (
        "from pathlib import Path; from qdm_pipeline.launch.agent import run_job; "
        f"from qdm_pipeline.run import Run; run_job(Run.read(Path({str(run.file)!r})), 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    pid_files = [run.directory / "pid-0", run.directory / "pid-1"]
    _wait_until(lambda: all(file.exists() and file.read_text() for file in pid_files))
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=10)
    assert parent.returncode in (status, -number)
    _wait_until(lambda: not any(_alive(int(file.read_text())) for file in pid_files), seconds=5)
    assert run.result() is None
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors


def _wait_until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
