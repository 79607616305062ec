"""Samples to numbers and a report."""

from pathlib import Path
from typing import Any

from qdm_pipeline.evaluation.classifier_task import ClassifierSettings
from qdm_pipeline.evaluation.evaluate import EvaluationSettings
from qdm_pipeline.files import read_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.run import Run


def train_classifier(settings: ClassifierSettings, clips: Handle, runs: Path, world_size: int) -> Handle:
    """Train the classifier whose features the distances are measured in."""
    return run_job(Run.create("classifier", settings, {"clips": clips}, runs), world_size)


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
    world_size: int,
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
    evaluation = run_job(Run.create("evaluation", settings, inputs, runs), world_size)
    return evaluation, read_json(evaluation.path / "metrics.json")
