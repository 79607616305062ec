"""Found on the PYTHONPATH by the workers that the tests start: strikes a rank at a chosen moment.

QDM_FAULT is JSON, {"rank": 1, "moment": "step", "at": 7, "how": "kill"}: before call ``at`` (from 0) of
what the moment names, in a training loop that starts at step 0 as well as in one that resumes, the rank is
struck. With a file under "once" it is struck only while that file does not exist.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

FAULT = json.loads(os.environ.get("QDM_FAULT", "null"))


def strike():
    if "once" in FAULT:
        if Path(FAULT["once"]).exists():
            return
        Path(FAULT["once"]).touch()
    match FAULT["how"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "terminate":
            os.kill(os.getppid(), signal.SIGTERM)
        case "raise":
            raise RuntimeError("struck")
    time.sleep(0.01)


def before(module, name, at):
    """Strike before call number ``at`` of a function or method."""
    function, calls = getattr(module, name), iter(range(10**9))

    def struck(*arguments, **options):
        if next(calls) == at:
            strike()
        return function(*arguments, **options)

    setattr(module, name, struck)


def install():
    moment, at = FAULT["moment"], FAULT["at"]
    if moment == "step":  # counted as the training counts, so that a resumed one passes it too
        from qdm_pipeline.training import loop

        take = loop.Progress.step

        def step(self):
            take(self)
            if self.done == at:
                strike()

        loop.Progress.step = step
    elif moment == "between":  # after the critic's updates of a step, before the student's
        from qdm_pipeline.training.distill import DistillTask

        before(DistillTask, "_student_update", at)
    elif moment.startswith("save:"):  # what of a checkpoint has been done already
        import torch

        from qdm_pipeline import files
        from qdm_pipeline.training import checkpoint

        inside = {
            "save:copied": (checkpoint.Writer, "_write"),
            "save:opened": (torch, "save"),
            "save:written": (checkpoint, "digest_file"),
            "save:digested": (checkpoint, "digest_json"),
            "save:described": (files, "_fsync"),
            "save:renamed": (checkpoint.Writer, "_drop_old"),
        }
        before(*inside[moment], at)


if FAULT and "qdm_pipeline.launch.worker" in " ".join(sys.orig_argv):
    if int(os.environ.get("RANK", "-1")) == FAULT["rank"]:
        install()
