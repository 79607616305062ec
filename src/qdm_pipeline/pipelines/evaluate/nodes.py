"""Samples to numbers and a report."""

import shlex
import sys
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from qdm_pipeline import __version__
from qdm_pipeline.evaluation import report
from qdm_pipeline.evaluation.data import EvaluationSettings
from qdm_pipeline.evaluation.figures import (
    code_dropout_figure,
    codebook_figure,
    corruption_figure,
    distance_figure,
)
from qdm_pipeline.evaluation.rows import COLUMNS
from qdm_pipeline.files import read_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.settings import LaunchSettings
from qdm_pipeline.launch.world import WorldSize
from qdm_pipeline.revision import changed, commit
from qdm_pipeline.run import Run


def evaluate_samples(
    settings: EvaluationSettings,
    clips: Handle,
    latents: Handle,
    autoencoder: Handle,
    classifier: Handle,
    teacher: Handle,
    teacher_samples: Handle,
    teacher_few_step_samples: Handle,
    student_samples: Handle,
    runs: Path,
    world_size: WorldSize,
    launch: LaunchSettings,
) -> tuple[Handle, dict[str, Any]]:
    """Judge all samples; returns the evaluation and its metrics."""
    inputs = {
        "clips": clips,
        "latents": latents,
        "autoencoder": autoencoder,
        "classifier": classifier,
        "teacher": teacher,
        "teacher_samples": teacher_samples,
        "teacher_few_step_samples": teacher_few_step_samples,
        "student_samples": student_samples,
    }
    run = Run.create("evaluation", settings, inputs, runs, form=COLUMNS)
    evaluation = run_job(run, world_size, launch)
    return evaluation, read_json(evaluation.path / "metrics.json")


def write_report(metrics: dict[str, Any], evaluation: Handle, *models: Handle) -> str:
    """One HTML page of the metrics, the curves of all ``models``, and the samples."""
    runs = {model.kind: Run.read(model.path / "run.json") for model in models}
    judged = Run.read(evaluation.path / "run.json")
    code = Path(__file__).parent
    return report.write_report(
        metrics,
        {kind: run.metrics() for kind, run in runs.items()},
        load_file(evaluation.path / "gallery.safetensors"),
        {kind: run.settings for kind, run in {**runs, "evaluation": judged}.items()},
        {
            "Command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "Commit": f"{commit(code) or 'none'}{' with changes' if changed(code) else ''}",
            "Versions": f"qdm-pipeline {__version__}, torch {torch.__version__}, Python {python_version()}",
        },
    )


def plot_distances(metrics: dict[str, Any]) -> Figure:
    """The distance of every set of samples from real clips."""
    return distance_figure(metrics["rows"])


def plot_corruptions(metrics: dict[str, Any]) -> Figure:
    """What the features see; empty with ``evaluation.corrupted: 0``."""
    return corruption_figure(metrics["corruptions"])


def plot_code_dropout(metrics: dict[str, Any]) -> Figure:
    """What is lost with codes; empty with ``evaluation.corrupted: 0``."""
    return code_dropout_figure(metrics["code_dropout"])


def plot_codebook(evaluation: Handle) -> Figure:
    """How often real clips and samples use each code."""
    return codebook_figure(report.codebook_usage(load_file(evaluation.path / "gallery.safetensors")))
