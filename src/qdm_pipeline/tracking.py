"""MLflow keeps the record of every ``kedro run``; other boards get the metrics where they are asked for."""

import atexit
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from qdm_pipeline.configuration import plain
from qdm_pipeline.errors import InputError
from qdm_pipeline.mlflow_runs import PARENT, absolute, experiment_id, log_dataset, monitor, pages, register
from qdm_pipeline.revision import changed, commit

logger = logging.getLogger(__name__)

BOARDS = {"tensorboard": ("tensorboard", "QDM_TENSORBOARD"), "wandb": ("wandb", "QDM_WANDB")}
CHART = "workflowType=machine_learning&compareRunsMode=CHART"


class MLflowHook:
    """Every run is one MLflow run; once it has begun, trouble with MLflow is a warning and never ends it."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read ``mlflow.yml``."""
        self._project = context.project_path
        self._config = context.config_loader["mlflow"]
        self._run_id: str | None = None

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the MLflow run and tell the workers of this process about it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._catalog = catalog
        uri = absolute(self._project, self._config["tracking_uri"])
        self._client = MlflowClient(uri)
        self._experiment = experiment_id(self._client, self._project, self._config)
        tags = {
            **commit_tags(self._project),
            "pipeline": _pipeline_name(run_params),
            "env": str(run_params["env"]),
        }
        if parent := os.environ.get(PARENT):
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._experiment, run_name=run_name(run_params), tags=tags)
        self._run_id = run.info.run_id
        params = flatten(
            {
                name.removeprefix("params:"): plain(catalog[name].load())
                for name in sorted(pipeline.inputs())
                if name.startswith("params:")
            }
        )
        entities = [Param(key, str(value)) for key, value in params.items()]
        for first in range(0, len(entities), 100):  # as many as MLflow takes at once
            self._client.log_batch(self._run_id, params=entities[first : first + 100])
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": self._run_id}
        self._monitor = monitor(self._run_id, uri) if self._config["system_metrics"] else None
        self._datasets: set[str] = set()
        atexit.register(self._end, "FAILED", "interrupted")  # Ctrl-C tells no hook

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log what the catalog marks: ``metadata.mlflow`` is one of these or a folder.

        ``dataset``: an input of the run, also where it is loaded; ``metrics``: rows of a report; ``facts``:
        the numbers in a handle's metadata; ``model``: an exported pipeline, if ``mlflow.yml`` names a
        registered model; else the dataset's file.
        """
        dataset: Any = self._catalog.get(dataset_name)
        mark = (getattr(dataset, "metadata", None) or {}).get("mlflow")
        if mark is None or self._run_id is None:
            return
        try:
            if mark == "dataset":
                self._used(data)
            elif mark == "metrics":
                for key, value in row_metrics(data).items():
                    self._client.log_metric(self._run_id, key, value)
            elif mark == "facts":
                for key, value in numbers(data.metadata).items():
                    self._client.log_metric(self._run_id, f"{data.kind}/{key}", value)
            elif mark == "model":
                if (registered := self._config["registered_model"]) is not None:
                    register(self._client, self._experiment, self._run_id, registered, data.path)
            else:
                self._client.log_artifact(self._run_id, str(dataset._filepath), mark)
        except Exception as error:
            logger.warning("MLflow did not take %s: %s", dataset_name, error)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """What an earlier run has made of the data, and this one uses, is an input of it as well."""
        dataset: Any = self._catalog.get(dataset_name)
        if (getattr(dataset, "metadata", None) or {}).get("mlflow") == "dataset":
            self.after_dataset_saved(dataset_name, data)

    def _used(self, data: Any) -> None:
        if data.kind in self._datasets or self._run_id is None:
            return
        self._datasets.add(data.kind)
        log_dataset(self._client, self._run_id, data.kind, data.digest, data.path)
        self._client.set_tag(self._run_id, data.kind, data.digest[:12])

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Close the MLflow run and say where to look at it."""
        run_id = self._run_id
        self._end("FINISHED")
        place = f"{pages(self._config)}/#/experiments/{self._experiment}"
        logger.info("MLflow, this run: %s/runs/%s", place, run_id)
        logger.info("MLflow, all runs: %s/runs?%s (`kedro open mlflow` serves both)", place, CHART)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Mark the MLflow run as failed, and say why."""
        self._end("FAILED", f"{type(error).__name__}: {error}")

    def _end(self, status: str, error: str | None = None) -> None:
        run_id, self._run_id = self._run_id, None
        if run_id is None:
            return
        del os.environ["MLFLOW_RUN_ID"], os.environ["MLFLOW_TRACKING_URI"]
        try:
            if self._monitor is not None:
                self._monitor.finish()
            if error is not None:
                self._client.set_tag(run_id, "error", error[-5000:])
            self._client.set_terminated(run_id, status)
        except Exception as trouble:
            logger.warning("MLflow did not take the end of the run: %s", trouble)


class BoardsHook:
    """Metrics also go to the boards that ``trackers.yml`` names; workers learn it from the environment."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read ``trackers.yml``."""
        config = context.config_loader["trackers"]
        for name, (package, variable) in BOARDS.items():
            if (wanted := config.pop(name, None)) is None:
                os.environ.pop(variable, None)
                continue
            if find_spec(package) is None:
                raise InputError(
                    f"trackers.yml: {name}: the package {package} is missing; pip install -e .[trackers]"
                )
            os.environ[variable] = wanted if name == "wandb" else str(context.project_path / wanted)
        if config:
            raise InputError(f"trackers.yml: {', '.join(config)}: unknown; known are {', '.join(BOARDS)}")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; lists become text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def row_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``{"rows": [{"name": "teacher", "frechet": 1.0}]}`` as ``teacher/frechet``."""
    return {f"{row['name']}/{key}": value for row in report["rows"] for key, value in numbers(row).items()}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _pipeline_name(run_params: dict[str, Any]) -> str:
    return " ".join(run_params["pipeline_names"] or ["all"])


def run_name(run_params: dict[str, Any]) -> str:
    """What was run and what was changed for it: ``train small distill.seed=1``."""
    changed = [f"{key}={value}" for key, value in flatten(run_params["runtime_params"]).items()]
    env = run_params["env"]
    return " ".join([_pipeline_name(run_params), *([env] if env not in (None, "local") else []), *changed])


def commit_tags(project: Path) -> dict[str, str]:
    """The commit that the project stands at, and whether anything differs from it; nothing outside git."""
    if (found := commit(project)) is None:
        return {}
    return {"mlflow.source.git.commit": found, "git.changed": str(changed(project)).lower()}
