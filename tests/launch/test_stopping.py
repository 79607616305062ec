"""A request to stop is noted, and heeded by all ranks after the same step."""

import os
import signal
from pathlib import Path

import pytest

from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.stopping import StopRequest

SITE = str(Path(__file__).parent / "worker_site")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_alone_it_is_heeded_at_once_and_only_inside(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.agreed(Ranks(), 1) is None
        os.kill(os.getpid(), number)
        assert stop.agreed(Ranks(), 2) is number
    assert signal.getsignal(number) is before


def test_two_ranks_agree_on_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SITE, os.environ.get("PYTHONPATH", "")]))
    steps = run_job(Run.create("agree", {}, {}, tmp_path), 2).metadata["steps"]
    assert steps[0] == steps[1] > 1001  # where rank 1 was asked, just after the first agreement
