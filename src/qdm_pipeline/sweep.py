"""One pipeline over a grid of parameters: child runs under one MLflow run, a table and a figure of all."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession

from qdm_pipeline.errors import DivergenceError, InputError, WorkerError
from qdm_pipeline.evaluation.sweep_table import Result, write
from qdm_pipeline.files import read_json
from qdm_pipeline.grid import Point, grid, nested, say
from qdm_pipeline.mlflow_runs import PARENT, comparison_page, finish, log_files, start

logger = logging.getLogger(__name__)


def sweep(
    project: Path, axes: Sequence[str], pipelines: Sequence[str], env: str | None, each: bool = False
) -> list[Result]:
    """Run every point; one that fails is recorded and the others go on. Writes ``sweep.*`` to the report."""
    points, reporting = grid(axes, each), project / "data/08_reporting"
    session: Any = KedroSession.create(project, env=env)
    with session:  # a wrong environment is said before any run
        config = session.load_context().config_loader["mlflow"]
    asked = " ".join([*(["--each"] if each else []), *axes])
    parent = start(project, config, f"sweep {asked}", {"sweep": asked})
    results: list[Result] = []
    os.environ[PARENT] = parent
    try:
        for number, point in enumerate(points, 1):
            logger.info("sweep: %d of %d: %s", number, len(points), say(point))
            results.append(_run(project, point, pipelines, env, reporting / "metrics.json"))
            files = write(reporting, results)
            log_files(project, config, parent, files)
    finally:
        del os.environ[PARENT]
        failed = len(results) < len(points) or any(result.error for result in results)
        finish(project, config, parent, "FAILED" if failed else "FINISHED")
    logger.info("MLflow, its runs compared: %s", comparison_page(project, config, parent))
    return results


def _run(project: Path, point: Point, pipelines: Sequence[str], env: str | None, metrics: Path) -> Result:
    before = metrics.stat().st_mtime_ns if metrics.exists() else None
    try:
        session: Any = KedroSession.create(project, env=env, runtime_params=nested(point))
        with session:
            session.run(pipeline_names=list(pipelines) or ["__default__"])
    except (InputError, DivergenceError, WorkerError) as error:
        message = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        logger.error("sweep: %s failed: %s", say(point), message)
        return Result(point, message, [])
    judged = metrics.exists() and metrics.stat().st_mtime_ns != before
    return Result(point, None, read_json(metrics)["rows"] if judged else [])
