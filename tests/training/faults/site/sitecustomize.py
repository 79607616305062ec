"""Found on the PYTHONPATH by the workers that the tests start: strikes a rank, and digests final states.

QDM_FAULT is JSON, for example {"rank": 1, "moment": "step", "at": 7, "how": "kill", "once": FILE}: the rank
is struck before call ``at`` (from 0) of what the moment names, or, for "step", once ``at`` steps are done,
counted as the training counts, so that a resumed one passes it too; "once" marks that it has been.
"""

import atexit
import hashlib
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

FAULT = json.loads(os.environ.get("QDM_FAULT", "null"))


def strike(subject=None):
    if "once" in FAULT:
        if Path(FAULT["once"]).exists():
            return
        Path(FAULT["once"]).touch()
    match FAULT["how"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "terminate":  # as a scheduler would: the agent, which is this process' parent
            os.kill(os.getppid(), signal.SIGTERM)
        case "raise":
            raise RuntimeError("struck")
        case "drift":
            import torch

            weight = subject.model.patch_in.weight.data.view(-1)
            weight[3] = torch.nextafter(weight[3], torch.tensor(math.inf))
        case "overflow":  # of this rank alone: after ranks have averaged
            gradient = subject.parameters[0].grad
            getattr(gradient, "_local_tensor", gradient).view(-1)[0] = math.inf
    time.sleep(0.01)


def before(owner, name, at, counts=lambda *_, **__: True, subject=False):
    """Strike before call number ``at`` of a function or method, of those that count."""
    function, calls = getattr(owner, name), iter(range(10**9))

    def struck(*arguments, **options):
        if counts(*arguments, **options) and next(calls) == at:
            strike(arguments[0] if subject else None)
        return function(*arguments, **options)

    setattr(owner, name, struck)


def install(moment, at):
    from qdm_pipeline import files
    from qdm_pipeline.training import checkpoint, loop
    from qdm_pipeline.training.distill import DistillTask
    from qdm_pipeline.training.optimizer import Optimizer
    from qdm_pipeline.training.teacher import TeacherTask

    if moment == "step":
        count = loop.Progress.step

        def step(self):
            count(self)
            if self.done == at:
                strike()

        loop.Progress.step = step
    elif moment == "between":  # the critic's updates and the student's
        before(DistillTask, "_student_update", at)
    elif moment == "update":
        before(Optimizer, "step", at, subject=True)
    elif moment == "weights":
        before(TeacherTask, "train_step", at, subject=True)
    else:  # inside a save: what has been done already
        import shutil

        import torch

        def to_file(_, file, **__):  # collectives of objects save, too
            return isinstance(file, io.BufferedWriter)

        inside = {
            "copied": (checkpoint.Writer, "_write"),
            "opened": (torch, "save", to_file),
            "written": (checkpoint, "digest_file"),
            "digested": (checkpoint, "digest_json"),
            "described": (files, "_fsync"),
            "renamed": (checkpoint.Writer, "_drop_old"),
            "dropping": (shutil, "rmtree", lambda path, **_: Path(path).exists()),
        }
        owner, name, *counts = inside[moment]
        before(owner, name, at, *counts)


def digest_final_states():
    from qdm_pipeline.training.distill import DistillTask
    from qdm_pipeline.training.teacher import TeacherTask

    def leaves(name, value):
        if isinstance(value, dict):
            for key in value:
                yield from leaves(f"{name}.{key}", value[key])
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from leaves(f"{name}.{index}", item)
        else:
            yield name, value

    for task in (TeacherTask, DistillTask):

        def export(self, directory, export=task.export):
            digest = hashlib.sha256()
            for name, value in leaves("", self.state_dict()):
                digest.update(name.encode())
                content = value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()
                digest.update(content)
            (directory / "state.sha256").write_text(digest.hexdigest())
            return export(self, directory)

        task.export = export


def name_threads():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if left := [name for name in names if "gloo" in name]:
        print("outlived by", left, file=sys.stderr)


if "qdm_pipeline.launch.worker" in " ".join(sys.orig_argv) and "RANK" in os.environ:
    if FAULT and int(os.environ["RANK"]) == FAULT["rank"]:
        install(FAULT["moment"], FAULT["at"])
    atexit.register(name_threads)
    if "QDM_DIGEST" in os.environ and os.environ["RANK"] == "0":
        digest_final_states()
