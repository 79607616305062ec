"""Where MLflow keeps the project's runs, and runs that hold others."""

import json
import logging
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qdm_pipeline.files import read_json

PARENT = "QDM_PIPELINE_PARENT_RUN"  # environment variable: the MLflow run that runs started now belong to


def absolute(project: Path, uri: str) -> str:
    """A tracking URI that means the same in any folder."""
    prefix = "sqlite:///"
    return f"{prefix}{project / uri.removeprefix(prefix)}" if uri.startswith(prefix) else uri


def experiment_id(client: Any, project: Path, config: dict[str, Any]) -> str:
    """The experiment of ``mlflow.yml``, made if it is new."""
    found = client.get_experiment_by_name(config["experiment"])
    if found is not None:
        return str(found.experiment_id)
    local = config["tracking_uri"].startswith("sqlite:")
    location = (project / config["artifacts"]).as_uri() if local else None
    return str(client.create_experiment(config["experiment"], artifact_location=location))


def log_dataset(client: Any, run_id: str, name: str, digest: str, folder: Path) -> None:
    """Name a dataset as an input of a run."""
    from mlflow.entities import Dataset, DatasetInput

    source = json.dumps({"uri": str(folder)})
    dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)  # 36: all it takes
    client.log_inputs(run_id, [DatasetInput(dataset)])


def monitor(run_id: str, uri: str) -> Any:
    """Watch this machine from a thread of its own until ``finish`` is called."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    watching = SystemMetricsMonitor(run_id, tracking_uri=uri)
    watching.start()
    return watching


def start(project: Path, config: dict[str, Any], name: str, tags: dict[str, str]) -> str:
    """Open a run that others will belong to; returns its id."""
    client = _client(project, config)
    run = client.create_run(experiment_id(client, project, config), run_name=name, tags=tags)
    return str(run.info.run_id)


def log_files(project: Path, config: dict[str, Any], run_id: str, files: Iterable[Path]) -> None:
    """Put files beside a run."""
    client = _client(project, config)
    for file in files:
        client.log_artifact(run_id, str(file))


def finish(project: Path, config: dict[str, Any], run_id: str, status: str) -> None:
    """Close a run as FINISHED or FAILED."""
    _client(project, config).set_terminated(run_id, status)


def register(client: Any, experiment: str, run_id: str, name: str, directory: Path) -> None:
    """Log an exported pipeline as a `mlflow.pyfunc` model of a run, and register it as ``name``.

    The package's own code goes with it: where it is loaded, its libraries are all that must be installed.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    from qdm_pipeline.inference import served

    libraries = read_json(directory / "pipeline.json")["libraries"]
    params = ParamSchema(
        [
            ParamSpec("seed", "long", 0),
            ParamSpec("steps", "long", None),
            ParamSpec("guidance", "double", None),
        ]
    )
    mlflow.set_tracking_uri(client.tracking_uri)
    model = client.create_logged_model(experiment, name, run_id, model_type="video generator")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    with warnings.catch_warnings():  # it wants an example of the input, and would sample it
        warnings.simplefilter("ignore")
        mlflow.pyfunc.log_model(
            model_id=model.model_id,
            loader_module=served.__name__,
            data_path=str(directory),
            code_paths=[str(Path(__file__).parent)],
            pip_requirements=[f"{library}=={version(library).split('+')[0]}" for library in libraries],
            signature=ModelSignature(Schema([ColSpec("string", "asked")]), params=params),
            registered_model_name=name,
        )


def pages(config: dict[str, Any]) -> str:
    """Where MLflow's pages are: at its server, or where ``kedro open mlflow`` serves them."""
    uri: str = config["tracking_uri"]
    return uri if uri.startswith("http") else "http://127.0.0.1:5000"


def comparison_page(project: Path, config: dict[str, Any], parent: str) -> str:
    """The address of the page that compares the runs that belong to another one."""
    client = _client(project, config)
    experiment = experiment_id(client, project, config)
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    ids, experiments = (
        quote(json.dumps(each, separators=(",", ":")))
        for each in ([run.info.run_id for run in runs], [experiment])
    )
    return f"{pages(config)}/#/compare-runs?runs={ids}&experiments={experiments}"


def _client(project: Path, config: dict[str, Any]) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(absolute(project, config["tracking_uri"]))
