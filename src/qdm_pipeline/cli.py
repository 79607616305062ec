"""The project's own commands beside Kedro's: ``kedro sweep``."""

import sys
from pathlib import Path

import click


@click.group()
def cli() -> None:
    """Commands of this project."""


@cli.command(
    epilog="Example: kedro sweep teacher.seed+distill.seed=0,1,2 distill.dmd.gan.student_weight=0,0.003"
)
@click.argument("axes", nargs=-1, required=True, metavar="PARAMETER=VALUE,VALUE ...")
@click.option("--pipeline", "-p", "pipelines", multiple=True, help="Pipeline to run; repeat for several.")
@click.option("--env", "-e", help="Configuration environment.")
def sweep(axes: tuple[str, ...], pipelines: tuple[str, ...], env: str | None) -> None:
    """Run a pipeline for every combination of parameters.

    Parameters joined by + move together; runs that differ in seeds only are averaged. Each combination is an
    MLflow run under one parent; the table stands in data/08_reporting/sweep.md, the figure beside it.
    """
    from qdm_pipeline import sweep as sweeps
    from qdm_pipeline.errors import InputError

    try:
        results = sweeps.sweep(Path.cwd(), axes, pipelines, env)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(sweeps.table(results))
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
