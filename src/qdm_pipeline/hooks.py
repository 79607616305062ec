"""What happens before every ``kedro run``: inputs are checked, and several machines find each other."""

import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from kedro.config import MissingConfigException
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline

from qdm_pipeline.errors import DivergenceError, InputError, WorkerError

if TYPE_CHECKING:
    from qdm_pipeline.launch.nodes import Lead

TRAININGS = {"train.train_teacher": "teacher", "train.distill_student": "distillation"}  # by node


class InputHook:
    """What a user can mend is said before anything is computed, and without a stack."""

    @hook_impl(tryfirst=True)
    def after_context_created(self) -> None:
        """From here on errors that explain themselves are printed as their message."""
        previous = sys.excepthook

        def show(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
            cause: BaseException | None = error
            while isinstance(cause, DatasetError):  # Kedro wraps what a dataset raises, once or twice
                cause = cause.__cause__
            if isinstance(cause, InputError | DivergenceError):
                print(f"{type(cause).__name__}: {cause}", file=sys.stderr)
            elif isinstance(cause, WorkerError):  # the failed node has shown the rest
                print(f"{type(cause).__name__}: {str(cause).splitlines()[0]}", file=sys.stderr)
            elif isinstance(cause, ValueError | MissingConfigException) and _from_kedro(stack):
                print(f"kedro: {' '.join(str(cause).split())}", file=sys.stderr)
            else:
                previous(kind, error, stack)

        sys.excepthook = show

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Raise what a missing input, shapes that do not fit or too large a model would raise hours later."""
        for name in sorted(pipeline.inputs()):
            if not catalog.exists(name):
                catalog.load(name)
        nodes = {node.name for node in pipeline.nodes}
        if nodes & {"preprocess.cut_clips", *TRAININGS}:
            from qdm_pipeline.estimate import NEEDED, check_calls, check_memory, check_shapes, check_text

            settings = {name: catalog.load(f"params:{name}") for name in NEEDED}
            check_shapes(settings)
            if {"preprocess.encode_clips", "train.train_teacher"} <= nodes:
                check_text(settings)
            if {"train.distill_student", "sample.sample_student"} <= nodes:
                check_calls(settings | {"student_samples": catalog.load("params:student_samples")})
            check_memory(settings, {job for name, job in TRAININGS.items() if name in nodes})
        if "preprocess.cut_clips" in nodes:
            from qdm_pipeline.video.folder import list_videos

            list_videos(catalog.load("raw_videos"))
        if "evaluate.evaluate_samples" in nodes:
            from qdm_pipeline.evaluation.extractors import check

            check(catalog.load("params:evaluation"))


def _from_kedro(stack: TracebackType | None) -> bool:
    """Whether Kedro raised it: a pipeline, environment or node that does not exist."""
    return stack is not None and "/kedro/" in traceback.extract_tb(stack)[-1].filename


class NodesHook:
    """On several machines all run the same command: the first the pipeline, the others only its jobs."""

    _first: "Lead | None" = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, catalog: DataCatalog) -> None:
        """Check the launch settings; on any node but the first, lend processes until the first one ends."""
        from qdm_pipeline.launch.nodes import follow, lead  # with torch, which `kedro --help` needs not
        from qdm_pipeline.launch.place import find_place
        from qdm_pipeline.launch.world import processes

        settings, world_size = (catalog.load(f"params:{name}") for name in ("launch", "world_size"))
        place = find_place(settings)
        count = 1 if world_size == 1 else processes(world_size, place.nodes)
        if not place.leads:
            sys.exit(follow(place, count, settings))
        if place.nodes > 1:
            self._first = lead(place)
            self._first.status = 1

    @hook_impl
    def after_pipeline_run(self) -> None:
        """The other nodes end as this one does."""
        if self._first is not None:
            self._first.status = 0
