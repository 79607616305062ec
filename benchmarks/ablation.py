"""The ablation of docs/distillation.md and a grid of codebooks, many runs beside each other on one GPU.

``python -m benchmarks.ablation [SLOTS [ENV]]``, in a project whose clips are preprocessed: each run is a
process in a copy of the project (in TMPDIR, some 300 MB each); a teacher is trained once for its seed.
Results are gathered in ``data/08_reporting`` as `kedro sweep` writes them: ``ablation/`` and ``codebooks/``.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from qdm_pipeline.files import read_json
from qdm_pipeline.sweep import Result, write

SEEDS = ("teacher", "distill", "teacher_samples", "teacher_few_step_samples", "student_samples")
CHANGES = (
    "",
    "distill.dmd.times=[1.0]",
    "distill.dmd.times=[1.0, 0.5]",
    "distill.dmd.path=continuous",
    "distill.dmd.codebook=ema",
    "distill.dmd.matching=jeffreys",
    "distill.dmd.gan.student_weight=0.3",
    "distill.dmd.regression_weight=0.1",
    "distill.start.steps=0",
    "teacher_few_step_samples.steps=1",
    "teacher_few_step_samples.steps=8",
)
KEDRO = [sys.executable, "-m", "kedro"]


@dataclass
class Job:
    """One process: the Kedro command, in a copy of the project or of what another job has left."""

    name: str
    command: list[str]
    after: "Job | None" = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, project: Path, root: Path, env: list[str]) -> None:
        """Copy, then run there; its output goes to a file beside the copy."""
        source = project if self.after is None else root / self.after.name
        shutil.copytree(
            source, root / self.name, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".git")
        )
        (root / self.name / "data/08_reporting/sweep.json").unlink(missing_ok=True)
        with (root / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*KEDRO, *self.command, *env], cwd=root / self.name, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def ended(self) -> bool:
        """Whether it has come to an end, a good one or not."""
        return self.process is not None and self.process.poll() is not None


def ablation() -> list[Job]:
    """Teacher and trajectories of three seeds, then every change of every seed."""
    jobs = []
    for seed in range(3):
        moved = [f"{name}.seed" for name in SEEDS]
        params = ",".join(f"{name}={seed}" for name in moved)
        command = ["run", "--to-nodes", "train.make_trajectories", "--params", params]
        jobs.append(teacher := Job(f"teacher-{seed}", command))
        axis = f"{'+'.join(moved)}={seed}"
        jobs += [
            Job(f"ablation-{seed}-{number}", ["sweep", axis, *filter(None, [change])], teacher)
            for number, change in enumerate(CHANGES)
        ]
    return jobs


def codebooks() -> list[Job]:
    """Everything from the teacher on, for each weight of the quantized loss and size of the codebook."""
    return [
        Job(
            f"codebooks-{weight}-{size}",
            [
                "sweep",
                f"teacher.quantization_weight={weight}",
                f"teacher.model.quantizer.codebook_size={size}",
            ],
        )
        for weight in (0, 0.25, 0.5, 1)
        for size in (256, 1024, 4096)
    ]


def run(jobs: list[Job], slots: int, project: Path, root: Path, env: list[str]) -> None:
    """Run all, at most ``slots`` at a time, each as soon as what it continues has ended."""
    waiting, running, started = list(jobs), list[Job](), time.monotonic()
    while waiting or running:
        for job in [job for job in running if job.ended]:
            running.remove(job)
            failed = job.process is not None and job.process.returncode != 0
            said = f"failed, see {root / job.name}.log" if failed else "done"
            print(f"{time.monotonic() - started:6.0f} s  {job.name}: {said}", flush=True)
            gather(project, root)
        ready = [job for job in waiting if job.after is None or job.after.ended]
        for job in ready[: slots - len(running)]:
            waiting.remove(job)
            job.start(project, root, env)
            running.append(job)
        time.sleep(0.5)


def gather(project: Path, root: Path) -> None:
    """Write the table, figure and JSON of what has ended so far."""
    for kind in ("ablation", "codebooks"):
        files = sorted(root.glob(f"{kind}-*/data/08_reporting/sweep.json"))
        results = [Result(**result) for file in files for result in read_json(file)]
        if results:
            folder = project / "data/08_reporting" / kind
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, results)


if __name__ == "__main__":
    slots = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    env = ["--env", sys.argv[2]] if len(sys.argv) > 2 else []
    root = Path(tempfile.mkdtemp(prefix="qdm_pipeline_ablation_"))
    print(f"in {root}", flush=True)
    run(ablation() + codebooks(), slots, Path.cwd(), root, env)
