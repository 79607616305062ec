"""What a worker can do: every kind of job, by name. Each imports only what it needs."""

import logging
from collections.abc import Callable

from qdm_pipeline.configuration import build
from qdm_pipeline.files import digest_file, write_json
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.video.shards import ShardSet

logger = logging.getLogger(__name__)


def train_autoencoder(run: Run, ranks: Ranks) -> None:
    """Clips to the video autoencoder."""
    from qdm_pipeline.training.loop import train
    from qdm_pipeline.video.autoencoder_task import AutoencoderSettings, AutoencoderTask

    settings = build(AutoencoderSettings, run.settings)
    train(AutoencoderTask(settings, ShardSet(run.inputs["clips"].path), ranks), run, ranks)


def encode_clips(run: Run, ranks: Ranks) -> None:
    """Clips to latents."""
    from qdm_pipeline.video.autoencoder import load_autoencoder
    from qdm_pipeline.video.encode import EncodeSettings, encode_latents

    clips, autoencoder = ShardSet(run.inputs["clips"].path), load_autoencoder(run.inputs["autoencoder"].path)
    encode_latents(build(EncodeSettings, run.settings), clips, autoencoder, ranks, run)


def train_classifier(run: Run, ranks: Ranks) -> None:
    """Clips to the classifier whose features judge samples."""
    from qdm_pipeline.evaluation.classifier_task import ClassifierSettings, ClassifierTask
    from qdm_pipeline.training.loop import train

    settings = build(ClassifierSettings, run.settings)
    train(ClassifierTask(settings, ShardSet(run.inputs["clips"].path), ranks), run, ranks)


def train_teacher(run: Run, ranks: Ranks) -> None:
    """Latents to the many-step teacher."""
    from qdm_pipeline.training.loop import train
    from qdm_pipeline.training.teacher import TeacherSettings, TeacherTask

    settings = build(TeacherSettings, run.settings)
    train(TeacherTask(settings, ShardSet(run.inputs["latents"].path), ranks), run, ranks)


def start_student(run: Run, ranks: Ranks) -> None:
    """Teacher and its trajectories to a few-step student that distillation starts from."""
    from qdm_pipeline.training.loop import train
    from qdm_pipeline.training.model_files import load_schedule
    from qdm_pipeline.training.start import StartJob, StartTask
    from qdm_pipeline.training.trajectories import Trajectories

    job, teacher = build(StartJob, run.settings), run.inputs["teacher"].path
    trajectories = Trajectories(
        run.inputs["trajectories"].path, job.times, job.renoising, load_schedule(teacher)
    )
    train(StartTask(job, teacher, trajectories, ranks), run, ranks)


def distill_student(run: Run, ranks: Ranks) -> None:
    """Teacher and latents to the few-step student."""
    from qdm_pipeline.evaluation.features import load_classifier
    from qdm_pipeline.training.distill import DistillTask
    from qdm_pipeline.training.distill_settings import DistillSettings
    from qdm_pipeline.training.loop import train
    from qdm_pipeline.training.model_files import load_schedule
    from qdm_pipeline.training.trajectories import Trajectories
    from qdm_pipeline.training.validation import LEAST, Validation
    from qdm_pipeline.video.autoencoder import load_autoencoder

    settings, inputs = build(DistillSettings, run.settings), run.inputs
    validation = trajectories = None
    if settings.validation is not None:
        clips = ShardSet(inputs["clips"].path)
        if (found := len(clips.of_main_size().rows("validation"))) >= LEAST:
            autoencoder = load_autoencoder(inputs["autoencoder"].path)
            classifier = load_classifier(inputs["classifier"].path)
            validation = Validation(settings.validation, clips, autoencoder, classifier, settings.seed, ranks)
        elif ranks.is_main:
            logger.warning(
                "student: %d clips in the split 'validation' are too few to judge it by (%d are needed): "
                "it is trained unjudged and the last one is kept", found, LEAST,
            )  # fmt: skip
    if settings.dmd.regression_weight > 0:
        dmd, schedule = settings.dmd, load_schedule(inputs["teacher"].path)
        trajectories = Trajectories(inputs["trajectories"].path, dmd.times, dmd.renoising, schedule)
    task = DistillTask(
        settings,
        inputs["teacher"].path,
        ShardSet(inputs["latents"].path),
        ranks,
        validation,
        trajectories,
        run.directory / "samples",
        inputs["start"].path if "start" in inputs else None,
    )
    train(task, run, ranks)


def sample_model(run: Run, ranks: Ranks) -> None:
    """A teacher or student to samples."""
    from qdm_pipeline.training.sampling import sample

    sample(run, ranks)


def evaluate_samples(run: Run, ranks: Ranks) -> None:
    """Samples to ``metrics.json`` and ``gallery.safetensors``."""
    from safetensors.torch import save_file

    from qdm_pipeline.evaluation.evaluate import Data, EvaluationSettings, evaluate
    from qdm_pipeline.evaluation.features import load_classifier
    from qdm_pipeline.evaluation.gallery import gallery
    from qdm_pipeline.training.model_files import load_predictor
    from qdm_pipeline.video.autoencoder import load_autoencoder

    settings, inputs = build(EvaluationSettings, run.settings), run.inputs
    samples = [handle for handle in inputs.values() if handle.kind == "samples"]
    latents = ShardSet(inputs["latents"].path)
    size = latents.size_with("latent", samples[0].metadata["shape"])
    data = Data(
        ShardSet(inputs["clips"].path).of_size(size),
        latents.of_size(size),
        load_autoencoder(inputs["autoencoder"].path),
        load_classifier(inputs["classifier"].path),
        load_predictor(inputs["teacher"].path)[0],
    )
    sets = [handle.path for handle in sorted(samples, key=lambda handle: -handle.metadata["nfe"])]
    decoders = {inputs["teacher_samples"].metadata["name"]: data.model.to(ranks.device).decode_codes}
    metrics = evaluate(settings, sets, data, decoders, ranks)
    if ranks.is_main:
        save_file(gallery(settings, sets, data), run.directory / "gallery.safetensors")
        write_json(run.directory / "metrics.json", metrics)
        run.finish(digest_file(run.directory / "gallery.safetensors"), {"metric": metrics["metric"]})


JOBS: dict[str, Callable[[Run, Ranks], None]] = {
    "autoencoder": train_autoencoder,
    "latents": encode_clips,
    "classifier": train_classifier,
    "teacher": train_teacher,
    "start": start_student,
    "student": distill_student,
    "samples": sample_model,
    "evaluation": evaluate_samples,
}
