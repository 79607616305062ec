"""Students are judged while they are distilled, and the best is kept."""

import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.errors import DivergenceError, InputError
from qdm_pipeline.evaluation.features import ClassifierConfig, VideoClassifier
from qdm_pipeline.files import digest_file
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import distill
from qdm_pipeline.training.loop import train
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.validation import Validation, ValidationSettings
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder
from qdm_pipeline.video.shards import write_shards

KEEP = {"every": 1, "samples": 20, "keep": "frechet"}


@pytest.fixture
def make_validation(tmp_path):
    torch.manual_seed(0)
    autoencoder = CausalVideoAutoencoder(
        AutoencoderConfig(
            channels=3, latent_channels=3, time_patch=4, space_patch=8, width=8, encoder_blocks=0,
            decoder_blocks=0,
        )
    )  # fmt: skip
    classifier = VideoClassifier(
        ClassifierConfig(width=4, features=3, differences=True, bound=4.0, classes=("even", "odd"))
    ).eval()

    def make(held_out=20, **changes):
        samples = [
            (
                {"video": torch.randint(255, (3, 1, 16, 16), dtype=torch.uint8)},
                {"id": str(i), "label": i % 2, "split": "train" if i >= held_out else "validation"},
            )
            for i in range(24 + held_out)
        ]
        clips = write_shards(
            tmp_path / f"clips{held_out}", samples, {"classes": ["even", "odd"], "fps": 8.0}, 100
        )
        settings = build(ValidationSettings, KEEP | changes)
        return Validation(settings, clips, autoencoder.eval(), classifier, 0, Ranks())

    return make


def scored(task, scores):
    """The task with the given distances instead of measured ones."""
    values = iter(scores)
    task.validation.__class__ = type(
        "Scored", (Validation,), {"__call__": lambda *_: {"validation/frechet": next(values)}}
    )
    return task


def test_figures_are_measured_and_are_the_same_again(make_distill, make_validation, tmp_path):
    task = make_distill(make_validation(), validation=KEEP)
    metrics = task.train_step(0)
    assert {f"validation/{name}" for name in ("frechet", "accuracy", "utilization", "diversity")} <= set(
        metrics
    )
    assert not list(tmp_path.glob("*.webp"))
    assert metrics["validation/frechet_low"] <= metrics["validation/frechet"]
    assert metrics["validation/identity"] == 1  # of clips of one frame
    assert 0 < metrics["validation/frechet_trimmed"] < metrics["validation/frechet_high"]
    again = task._validate(1, task.validation)
    assert all(again[name] == metrics[name] for name in again)


def test_every_role_is_shown_from_the_same_noise(make_distill, make_validation, tmp_path):
    task = make_distill(make_validation(), validation=KEEP)
    task.pictures = tmp_path / "pictures"
    for step in range(2):
        task.train_step(step)
    names = {"teacher.webp", "student-00001.webp", "student-00002.webp", "fake_score-00001.webp"}
    files = {file.name: file.read_bytes() for file in task.pictures.iterdir()}
    assert names <= set(files) and files["student-00001.webp"] != files["student-00002.webp"]
    (task.pictures / "student-00002.webp").unlink()
    task._validate(2, task.validation)
    assert (task.pictures / "student-00002.webp").read_bytes() == files["student-00002.webp"]


def test_the_best_student_is_exported_also_after_a_resume(make_distill, make_validation, tmp_path):
    validation = make_validation()
    scores = [5.0, 3.0, 4.0, 6.0]
    whole = scored(make_distill(validation, validation=KEEP), scores)
    for step in range(2):
        whole.train_step(step)
    best = whole.ema.weights(whole.dmd.student)
    best = {name: tensor.clone() for name, tensor in best.items()}
    resumed = scored(make_distill(validation, validation=KEEP), scores[2:])
    resumed.load_state_dict(whole.state_dict())
    for step in range(2, 4):
        resumed.train_step(step)
    (tmp_path / "out").mkdir()
    assert resumed.export(tmp_path / "out")["update"] == 2
    model, config = load_predictor(tmp_path / "out")
    assert config["sampler"] == "renoise"
    average = resumed.ema.weights(resumed.dmd.student)
    last, _ = load_predictor(tmp_path / "out/last")
    assert all(torch.equal(value, average[name]) for name, value in last.state_dict().items())
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())


def test_the_last_student_is_exported_where_that_is_asked_for(make_distill, make_validation, tmp_path):
    settings = KEEP | {"keep": "last"}
    task = scored(make_distill(make_validation(keep="last"), validation=settings), [1.0, 2.0])
    for step in range(2):
        task.train_step(step)
    (tmp_path / "out").mkdir()
    assert task.best is None and task.export(tmp_path / "out")["update"] == task.steps


@pytest.mark.parametrize("role", ["student", "critic"])
def test_a_run_that_goes_wrong_may_end_with_the_best(make_distill, make_validation, tmp_path, caplog, role):
    task = scored(
        make_distill(make_validation(), validation=KEEP, guard={"then": "best"}), [2.0, 1.0, 3.0, 4.0]
    )

    def check(update, last, found, loss):
        if update == 3:
            raise DivergenceError("student, update 3: saturation")
        return {}

    if role == "student":
        task.guard.check = check
    else:
        critic_step = task.critic_optimizer.step

        def fail(update):
            check(update // task.settings.critic_updates, 0, None, 0.0)
            return critic_step(update)

        task.critic_optimizer.step = fail
    run = Run.create("student", {}, {}, tmp_path / "runs")
    train(task, run, Ranks())
    assert "saturation; it ends with the student of update 2" in caplog.text
    assert run.result().metadata["update"] == 2
    assert run.result().digest == digest_file(run.directory / "model.safetensors")


def test_wrong_settings_are_named(make_distill):
    with pytest.raises(ValueError, match=r"validation.every: found 3, must be a multiple of log_every \(2\)"):
        make_distill(validation=KEEP | {"every": 3}, log_every=2)
    with pytest.raises(ValueError, match="guard.then: found 'best'"):
        make_distill(guard={"then": "best"})


def test_trajectories_draw_the_student_to_the_teachers_samples(make_distill, make_trajectories):
    task = make_distill(
        trajectories=make_trajectories((1.0, 0.5), "fresh"),
        dmd={"regression_weight": 100.0, "path": "continuous"},
        steps=60,
    )
    losses = [float(task._student_update(step)["student/loss_regression"]) for step in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("wrong", [{"path": "soft"}, {"codebook": "ema"}, {"matching": "jeffreys"}])
def test_only_a_vector_quantizer_has_distances(make_distill, monkeypatch, wrong):
    load = distill.load_predictor

    def other_kind(directory):
        model, config = load(directory)
        object.__setattr__(model.config.size.quantizer, "kind", "fsq")
        return model, config

    monkeypatch.setattr(distill, "load_predictor", other_kind)
    with pytest.raises(InputError, match="but kind 'fsq' of a quantizer takes"):
        make_distill(dmd=wrong)
