"""The ablation of docs/distillation.md and a grid of codebooks, many runs beside each other; made for a GPU.

``python -m benchmarks.ablation [--slots N] [--env ENV] [--only KIND] [PARAMETER=VALUE ...]``, in a project
whose clips are preprocessed: the nodes' own functions, each job in one of N processes that live on, what
points share only once, in the directories where `kedro run` would do it. Needs no Kedro, MLflow or PyAV.
Results are gathered in ``data/08_reporting`` as `kedro sweep` writes them: ``ablation/``, ``codebooks/``,
or only one KIND.
"""

import argparse
import os
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from qdm_pipeline.configuration import build
from qdm_pipeline.errors import WorkerError
from qdm_pipeline.evaluation.data import EvaluationSettings
from qdm_pipeline.evaluation.sweep_table import Result, write
from qdm_pipeline.files import read_json
from qdm_pipeline.grid import Point, grid, nested, say
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.settings import ALONE
from qdm_pipeline.launch.worker import compute_exactly
from qdm_pipeline.pipelines.evaluate import nodes as evaluate
from qdm_pipeline.pipelines.sample import nodes as sample
from qdm_pipeline.pipelines.train import nodes as train
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.sampling import SamplingSettings
from qdm_pipeline.training.teacher import TeacherSettings

SEEDS = ("teacher", "distill", "teacher_samples", "teacher_few_step_samples", "student_samples")
CHANGES = (
    "distill.dmd.times=[1.0],[1.0, 0.5]",
    "distill.dmd.times=[1.0] distill.steps=120",
    "distill.dmd.times=[1.0] distill.steps=120 distill.dmd.gan.student_weight=0.3",
    "distill.steps=80",
    "student_samples.times=[1.0, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]",
    "distill.dmd.renoising=kept",
    "distill.dmd.path=continuous",
    "distill.dmd.codebook=ema",
    "distill.dmd.matching=jeffreys",
    "distill.dmd.gan.student_weight=0.3",
    "distill.dmd.regression_weight=0.1",
    "distill.start.steps=0",
    "teacher_few_step_samples.steps=1,8",
)
CODEBOOKS = (
    "teacher.quantization_weight=0,0.25,0.5,1",
    "teacher.model.quantizer.codebook_size=256,1024,4096",
)
Tree = dict[str, Any]


def ablation() -> list[Point]:
    """None and every change alone, each with three seeds."""
    of_seed = [
        grid(["+".join(f"{name}.seed" for name in SEEDS) + f"={seed}", *CHANGES], each=True)
        for seed in range(3)
    ]
    return [point for points in zip(*of_seed, strict=True) for point in points]


def codebooks() -> list[Point]:
    """Every weight of the quantized loss with every size of the codebook."""
    return grid(CODEBOOKS)


GRIDS = {"ablation": ablation, "codebooks": codebooks}


def merged(base: Tree, change: Tree) -> Tree:
    """``base`` with the keys of ``change``, as Kedro merges parameters of an environment."""
    both = base | change
    return both | {
        key: merged(base[key], change[key])
        for key in base.keys() & change.keys()
        if isinstance(base[key], dict) and isinstance(change[key], dict)
    }


def configured(project: Path, env: str = "local") -> Tree:
    """The project's parameters."""
    parameters: Tree = {}
    for folder in ("base", env):
        for file in sorted((project / "conf" / folder).glob("parameters*.yml")):
            parameters = merged(parameters, yaml.safe_load(file.read_text()) or {})
    return parameters


class Pool:
    """Does the jobs of all points, each once; stands for `run_job` in the nodes."""

    def __init__(self, slots: int, log: Path) -> None:
        self._processes = ProcessPoolExecutor(slots, get_context("spawn"), prepare, (log,))
        self._jobs: dict[Path, Future[None]] = {}
        self._lock = threading.Lock()

    def __call__(self, run: Run, *_: object) -> Handle:
        """What the job leaves, once a process has done it."""
        with self._lock:
            if run.directory not in self._jobs:
                self._jobs[run.directory] = self._processes.submit(do, run.file)
        self._jobs[run.directory].result()
        result = run.result()
        if result is None:
            raise WorkerError(f"{run.kind}: nothing was left in {run.directory}")
        return result

    def close(self) -> None:
        """Let the processes end."""
        self._processes.shutdown()


def prepare(log: Path) -> None:
    """What a process does first; what it says goes to a file."""
    said = (log / f"{os.getpid()}.log").open("w")
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        compute_exactly()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process once its parent is gone: who kills the bench means all of it.

    Linux can do that by itself, but counts the thread that started a process as its parent.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def do(file: Path) -> None:
    """One job, from its ``run.json``."""
    from qdm_pipeline.launch.jobs import JOBS

    started, run = time.perf_counter(), Run.read(file)
    if run.result() is None:
        JOBS[run.kind](run, Ranks.from_environment())
    print(f"{run.directory.name}: {time.perf_counter() - started:.1f} s", flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def judge(project: Path, parameters: Tree) -> list[Tree]:
    """Latents to the rows of the evaluation, as `kedro run --pipelines train`, sample and evaluate."""
    data = project / "data"

    def handle(file: str) -> Handle:
        found = Handle.from_json(read_json(data / file))
        return Handle(found.kind, (data / file).parent / found.path, found.digest, found.metadata)

    def samples(name: str) -> SamplingSettings:
        return build(SamplingSettings, parameters[name])

    models, sampled = data / "06_models", data / "07_model_output"
    distill = build(DistillSettings, parameters["distill"])
    latents, clips = handle("05_model_input/latents.json"), handle("02_intermediate/clips.json")
    autoencoder, classifier = handle("06_models/autoencoder.json"), handle("06_models/classifier.json")
    teacher = train.train_teacher(build(TeacherSettings, parameters["teacher"]), latents, models, 1, ALONE)
    trajectories = train.make_trajectories(
        samples("teacher_trajectories"), distill, teacher, autoencoder, sampled, 1, ALONE
    )
    start = train.start_student(distill, teacher, trajectories, models, 1, ALONE)
    student = train.distill_student(
        distill, teacher, trajectories, start, latents, clips, autoencoder, classifier, models, 1, ALONE
    )
    many, few, fast = (
        sample.sample_model(samples(f"{name}_samples"), model, autoencoder, sampled, 1, ALONE)[0]
        for name, model in (("teacher", teacher), ("teacher_few_step", teacher), ("student", student))
    )
    settings, reporting = build(EvaluationSettings, parameters["evaluation"]), data / "08_reporting"
    rows: list[Tree] = evaluate.evaluate_samples(
        settings, clips, latents, autoencoder, classifier, teacher, many, few, fast, reporting, 1, ALONE
    )[1]["rows"]
    return rows


def run(project: Path, kinds: dict[str, list[Point]], parameters: Tree, slots: int) -> bool:
    """All points of all kinds; results are written as they come. Whether none failed."""
    reporting = project / "data/08_reporting"
    log, started = reporting / "ablation_logs", time.monotonic()
    log.mkdir(parents=True, exist_ok=True)
    pool, results = Pool(slots, log), {kind: list[Result]() for kind in kinds}
    for module in (train, sample, evaluate):
        module.run_job = pool  # type: ignore[attr-defined]
    points = [(kind, point) for kind, points in kinds.items() for point in points]
    # each waits for its jobs, one after the other; few at once, so that points are done before others begin
    with ThreadPoolExecutor(slots + 1) as threads:
        asked = {
            threads.submit(judge, project, merged(parameters, nested(point))): (kind, point)
            for kind, point in points
        }
        for future in as_completed(asked):
            kind, point = asked[future]
            error = future.exception()
            said = f"{type(error).__name__}: {error}" if error else None
            results[kind].append(Result(point, said, [] if error else future.result()))
            print(f"{time.monotonic() - started:6.0f} s  {kind} {say(point)}: {said or 'done'}", flush=True)
            results[kind].sort(key=lambda result: kinds[kind].index(result.point))
            (reporting / kind).mkdir(exist_ok=True)
            write(reporting / kind, results[kind])
    pool.close()
    return not any(result.error for found in results.values() for result in found)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=os.cpu_count())
    parser.add_argument("--env", default="local")
    parser.add_argument("--only", choices=GRIDS)
    parser.add_argument("changes", nargs="*", metavar="PARAMETER=VALUE")
    asked = parser.parse_intermixed_args()
    parameters, points = configured(Path.cwd(), asked.env), grid(asked.changes)
    change = nested(points[0])
    if len(points) > 1 or change.keys() - parameters.keys():
        parser.error(f"{' '.join(asked.changes)}: wanted one value each, of parameters in conf/base")
    kinds = {kind: points() for kind, points in GRIDS.items() if asked.only in (None, kind)}
    sys.exit(not run(Path.cwd(), kinds, merged(parameters, change), asked.slots))


if __name__ == "__main__":
    main()
