"""The project's own commands beside Kedro's. What they need is imported when they run."""

import shutil
import subprocess
import sys
from pathlib import Path

import click
from kedro.framework.cli.utils import split_string


@click.group()
def cli() -> None:
    """Commands of this project."""


@cli.command(
    epilog="Example: kedro sweep teacher.seed+distill.seed=0,1,2 distill.dmd.gan.student_weight=0,0.3"
)
@click.argument("axes", nargs=-1, required=True, metavar="PARAMETER=VALUE,VALUE ...")
@click.option("--pipelines", default="", callback=split_string, help="Pipelines to run, separated by commas.")
@click.option("--env", "-e", help="Configuration environment.")
@click.option("--each", is_flag=True, help="One change at a time, and none, instead of all combinations.")
def sweep(axes: tuple[str, ...], pipelines: list[str], env: str | None, each: bool) -> None:
    """Run a pipeline for every combination of parameters, or for each change alone, with all seeds.

    Parameters joined by + move together, and "A=1 B=2" in quotes changes both at once; runs that differ in
    seeds only are averaged. Each combination is an MLflow run under one parent; the table stands in
    data/08_reporting/sweep.md, the figure beside it.
    """
    from qdm_pipeline import sweep as sweeps
    from qdm_pipeline.errors import InputError
    from qdm_pipeline.evaluation.sweep_table import table

    try:
        results = sweeps.sweep(Path.cwd(), axes, pipelines, env, each)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(table(results))
    sys.exit(any(result.error for result in results))


@cli.command(epilog="Example: kedro compare data/08_reporting/evaluation-*")
@click.argument("evaluations", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def compare(evaluations: tuple[Path, ...]) -> None:
    """Put evaluations side by side: folders of evaluations, or their metrics.json, as a Markdown table.

    Those that were not measured alike (features, frames, size, clips, weights) are refused.
    """
    from qdm_pipeline.errors import InputError
    from qdm_pipeline.evaluation.comparison import comparison

    try:
        click.echo(comparison(evaluations), nl=False)
    except InputError as error:
        raise click.ClickException(str(error)) from None


@cli.command(epilog="Example: kedro export my-student")
@click.argument("directory", type=click.Path(path_type=Path))
def export(directory: Path) -> None:
    """Copy the student of the last run into a new DIRECTORY, with all that it needs to sample.

    There QuantizedVideoPipeline.from_pretrained(DIRECTORY) loads it, without Kedro.
    """
    from qdm_pipeline.files import directory_atomic, read_json

    handle = Path.cwd() / "data/06_models/student_export.json"
    if not handle.exists():
        raise click.ClickException(f"{handle}: no export yet; `kedro run --pipelines sample` makes one")
    if directory.exists():
        raise click.ClickException(f"{directory}: exists already; name a new directory")
    with directory_atomic(directory) as folder:
        shutil.copytree(handle.parent / read_json(handle)["path"], folder, dirs_exist_ok=True)
    click.echo(directory)


@cli.command()
def doctor() -> None:
    """Say what this machine and this project have, what they lack, and how to mend it.

    Ends with status 1 if something will stop a run.
    """
    from qdm_pipeline.doctor import examine

    lines, problems = examine(Path.cwd())
    width = max(len(name) for name, _ in lines)
    for name, found in lines:
        click.echo(f"{name:{width}}  {found}")
    for problem in problems:
        click.secho(problem, fg="red")
    sys.exit(bool(problems))


@cli.command()
def presets() -> None:
    """Print the size and cost of every preset (--env) as a Markdown table, computed from its parameters."""
    from qdm_pipeline.presets import table

    click.echo(table(Path.cwd()))


@cli.command("parameters")
def parameters_() -> None:
    """Print every parameter, what it takes, its value in conf/base and what it is, as Markdown."""
    from qdm_pipeline.reference import reference

    click.echo(reference(Path.cwd()), nl=False)


@cli.command("open", epilog="Example: kedro open mlflow --port 5001")
@click.argument("what", type=click.Choice(["report", "mlflow", "viz"]), default="report")
@click.option("--port", type=int, help="Port of MLflow (5000) or Kedro-Viz (4141).")
def open_(what: str, port: int | None) -> None:
    """Open the report of the last evaluation, MLflow's pages or Kedro-Viz in a browser."""
    if what == "report":
        report = Path.cwd() / "data/08_reporting/report.html"
        if not report.exists():
            raise click.ClickException(f"{report}: no report yet; `kedro run` makes one")
        sys.exit(click.launch(report.as_uri()))
    bin_ = Path(sys.executable).parent
    if what == "viz":
        sys.exit(subprocess.call([bin_ / "kedro", "viz", "run", "--port", str(port or 4141)]))
    from kedro.config import OmegaConfigLoader

    from qdm_pipeline.mlflow_runs import absolute, pages
    from qdm_pipeline.settings import CONFIG_LOADER_ARGS

    config = OmegaConfigLoader(str(Path.cwd() / "conf"), **CONFIG_LOADER_ARGS)["mlflow"]
    store, at = absolute(Path.cwd(), config["tracking_uri"]), str(port or 5000)
    if store.startswith("http"):
        sys.exit(click.launch(pages(config)))
    click.echo(f"MLflow: http://127.0.0.1:{at} (Ctrl-C ends it)")
    sys.exit(subprocess.call([bin_ / "mlflow", "ui", "--backend-store-uri", store, "--port", at]))
