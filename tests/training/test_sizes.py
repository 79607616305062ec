"""Teachers and students of latents of two sizes."""

import pytest
import torch

from qdm_pipeline.configuration import build
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.distill import DistillTask
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.teacher import TeacherSettings, TeacherTask
from qdm_pipeline.training.validation import Validation, ValidationSettings
from qdm_pipeline.video.shards import ShardWriter


@pytest.fixture
def both(tmp_path):
    """Two shards of eight latents, then one of twelve of another shape."""
    draw = torch.Generator().manual_seed(0)
    writer = ShardWriter(tmp_path / "both", {})
    for number, (count, shape) in enumerate([(8, (3, 1, 4, 2)), (8, (3, 1, 4, 2)), (12, (3, 1, 2, 2))]):
        tensors = torch.randn(count, *shape, generator=draw)
        columns = [{"id": f"{number}-{i}", "label": i % 2, "split": "train"} for i in range(count)]
        writer.put(number, [({"latent": x}, c) for x, c in zip(tensors, columns, strict=True)])
    return writer.finish(3, {"classes": ["even", "odd"], "space": 8}, sizes=True)


def test_a_teacher_hears_both_and_says_what_most_were(both, teacher_settings, tmp_path):
    settings = build(TeacherSettings, teacher_settings | {"batch": 8, "micro_batch": 4, "steps": 6})
    task = TeacherTask(settings, both, Ranks())
    shapes = [{int(both.size_of[task.rows[m.rows]][0]) for m in task.batches.of(step)} for step in range(6)]
    assert set.union(*shapes) == {0, 1} and any(len(found) == 2 for found in shapes)
    for step in range(6):
        assert task.train_step(step)["loss/total"].isfinite()
        assert task.suspects(step) == []
    task.export(tmp_path)
    _, config = load_predictor(tmp_path)
    assert config["latent_shape"] == [3, 1, 4, 2] and config["space"] == 8


@pytest.mark.parametrize(
    "loss",
    [{"gan": {"student_weight": 0.1, "r1_weight": 1.0}}, {"inputs": "noised"}, {"matching": "jeffreys"}],
)
def test_a_student_makes_both_and_goes_on_exactly(both, teacher_settings, distill_settings, tmp_path, loss):
    TeacherTask(build(TeacherSettings, teacher_settings), both, Ranks()).export(tmp_path)
    settings = build(DistillSettings, distill_settings(loss, batch=8, micro_batch=2))

    def make():
        return DistillTask(settings, tmp_path, both, Ranks())

    whole, first, second = make(), make(), make()
    for step in range(4):
        metrics = whole.train_step(step)
    for step in range(2):
        first.train_step(step)
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        again = second.train_step(step)
    assert metrics.keys() == again.keys()
    assert all(torch.equal(torch.as_tensor(metrics[k]), torch.as_tensor(again[k])) for k in metrics)
    weights, others = (task.dmd.student.state_dict() for task in (whole, second))
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    whole.export(tmp_path / "student")
    assert load_predictor(tmp_path / "student")[1]["latent_shape"] == [3, 1, 4, 2]


def test_validation_is_of_the_main_size(tmp_path):
    """Its conditions are those of train clips of that size, wherever they stand in the split."""
    from qdm_pipeline.evaluation.features import ClassifierConfig, VideoClassifier
    from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder

    writer = ShardWriter(tmp_path / "clips", {})
    for number, (side, count) in enumerate([(16, 20), (24, 70)]):
        splits = ["validation" if i % 3 == 0 else "train" for i in range(count)]
        clips = [
            (
                {"video": torch.randint(255, (3, 1, side, 16), dtype=torch.uint8)},
                {"id": i, "label": i % 2, "split": split},
            )
            for i, split in enumerate(splits)
        ]
        writer.put(number, clips)
    shards = writer.finish(2, {"classes": ["even", "odd"], "fps": 8.0}, sizes=True)
    sizes = AutoencoderConfig(
        channels=3, latent_channels=3, time_patch=4, space_patch=8, width=8, encoder_blocks=0,
        decoder_blocks=0,
    )  # fmt: skip
    classifier = VideoClassifier(
        ClassifierConfig(width=4, features=3, differences=True, bound=4.0, classes=("even", "odd"))
    )
    settings = build(ValidationSettings, {"every": 1, "samples": 20, "keep": "frechet"})
    validation = Validation(
        settings, shards, CausalVideoAutoencoder(sizes).eval(), classifier.eval(), 0, Ranks()
    )
    asked = shards.rows("train")[validation.positions]
    assert len(asked) == 20 and (shards.size_of[asked] == 1).all()
    labels = torch.tensor(shards.column("label"))
    assert torch.equal(validation.labels, labels[asked])
