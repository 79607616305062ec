"""Found on the PYTHONPATH by the workers that the tests start: adds jobs that only tests need."""

import os
import signal
import time

from qdm_pipeline.errors import InputError
from qdm_pipeline.launch.jobs import JOBS
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.stopping import StopRequest


def _sum_of_ranks(run: Run, ranks: Ranks) -> None:
    import torch

    total = int(ranks.sum(torch.tensor(ranks.rank + 1)))
    if ranks.is_main:
        run.finish("digest", {"total": total, "threads": torch.get_num_threads()})


def _rank_one_fails(run: Run, ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise ZeroDivisionError("the second rank had [/bad] luck")
    ranks.barrier()


def _bad_input(run: Run, ranks: Ranks) -> None:
    raise InputError("clips/a.mp4: not a video")


def _killed(run: Run, ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), 9)
    time.sleep(60)


def _sleep(run: Run, ranks: Ranks) -> None:
    (run.directory / f"pid-{ranks.rank}").write_text(str(os.getpid()))
    time.sleep(120)


def _still(run: Run, ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.barrier()


def _lost_in_thought(run: Run, ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 1:
        time.sleep(120)
    ranks.barrier()


def _agree(run: Run, ranks: Ranks) -> None:
    with StopRequest() as stop:
        for step in range(1000, 100000):
            time.sleep(0.001 * (1 + ranks.rank))
            if step == 1001 and ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.agreed(ranks, step):
                break
    steps = ranks.gather(step)
    if ranks.is_main:
        run.finish("digest", {"steps": steps})


def _fragile(run: Run, ranks: Ranks) -> None:
    tries = run.directory / f"tries-{ranks.rank}"
    count = int(tries.read_text()) + 1 if tries.exists() else 1
    tries.write_text(str(count))
    ranks.barrier()
    if count == 1 and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.barrier()
    if ranks.is_main:
        run.finish("digest", {"tries": count})


JOBS.update(
    {
        "sum": _sum_of_ranks,
        "fail": _rank_one_fails,
        "bad": _bad_input,
        "killed": _killed,
        "sleep": _sleep,
        "still": _still,
        "agree": _agree,
        "lost": _lost_in_thought,
        "fragile": _fragile,
    }
)
