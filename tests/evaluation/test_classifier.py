"""The classifier: learns what is easy, and is the same after export and resume."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdm_pipeline.configuration import build, plain
from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.classifier_task import ClassifierSettings, ClassifierTask, shifted, transformed
from qdm_pipeline.evaluation.features import ClassifierConfig, VideoClassifier, load_classifier
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.video.autoencoder import to_float
from qdm_pipeline.video.shards import ShardSet, write_shards

SETTINGS = ClassifierSettings(
    width=8,
    features=16,
    differences=True,
    bound=4.0,
    steps=50,
    batch=16,
    micro_batch=16,
    learning_rate=5e-3,
    weight_decay=0.01,
    transformed=0.25,
    max_shift=1,
    brightness=0.1,
    log_every=10,
    checkpoint=Retention(every=10, keep_last=2, keep_every=None),
    seed=0,
)


def bars(label: int, draw: torch.Generator) -> Tensor:
    """An upright (0) or a lying (1) bar somewhere in 3 frames of 16x16."""
    video = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    place = int(torch.randint(3, 12, (), generator=draw))
    if label == 0:
        video[..., place : place + 2] = 200
    else:
        video[..., place : place + 2, :] = 200
    return video


def make_clips(directory: Path, labelled: bool) -> ShardSet:
    draw = torch.Generator().manual_seed(0)
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    samples = (
        (
            {"video": bars(i % 2, draw)},
            {"id": i, "file": f"{i}.mp4", "split": split, "label": i % 2 if labelled else None},
        )
        for i, split in enumerate(splits)
    )
    classes = ["upright", "lying"] if labelled else None
    return write_shards(directory, samples, {"kind": "clips", "fps": 8, "classes": classes}, 64)


def test_learns_two_classes_and_loads_the_same(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", labelled=True)
    task = ClassifierTask(SETTINGS, clips, Ranks())
    for step in range(task.steps):
        metrics = task.train_step(step)
    assert set(metrics) >= {"loss", "class_loss", "class_accuracy", "transform_loss", "learning_rate"}
    metadata = task.export(tmp_path)
    assert metadata["features"] == "classifier-2plus1d-diff-16d-bound4"
    assert metadata["accuracy"]["validation"] >= 0.9
    assert metadata["accuracy"]["test"] >= 0.9
    with torch.no_grad():
        embeddings = task.model.embed(to_float(clips.gather("video", clips.rows("train"))))
    torch.testing.assert_close(task.model.mean, embeddings.mean(0), rtol=1e-4, atol=1e-5)
    loaded = load_classifier(tmp_path)
    assert loaded.config.classes == ("upright", "lying")
    video = torch.rand(2, 3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(video)[0], task.model(video)[0])
        assert torch.equal(loaded(video)[1], task.model(video)[1])


def test_clips_without_labels_train_by_their_transforms(tmp_path: Path) -> None:
    task = ClassifierTask(SETTINGS, make_clips(tmp_path / "clips", labelled=False), Ranks())
    assert "class_loss" not in task.train_step(0)
    metadata = task.export(tmp_path)
    assert metadata["features"] == "selfsup-2plus1d-diff-16d-bound4"
    assert metadata["accuracy"] == {"validation": None, "test": None}
    assert load_classifier(tmp_path)(torch.zeros(2, 3, 3, 16, 16))[1].shape == (2, 0)


def test_a_resume_continues_bit_for_bit(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", labelled=True)
    whole, first, second = (ClassifierTask(SETTINGS, clips, Ranks()) for _ in range(3))
    for step in range(4):
        whole.train_step(step)
        (first if step < 2 else second).train_step(step)
        if step == 1:
            second.load_state_dict(first.state_dict())
    for expected, found in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 24, 40), (9, 32, 32), (17, 16, 64)])
def test_takes_clips_of_any_size_each_for_itself(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = VideoClassifier(
        ClassifierConfig(width=8, features=6, differences=True, bound=4.0, classes=("a", "b", "c"))
    )
    video = torch.rand(3, 3, *shape) * 2 - 1
    model.fit_scales(video)
    features, logits = model(video)
    assert features.shape == (3, 6)
    assert logits.shape == (3, 3)
    torch.testing.assert_close(model(video[1:2])[0], features[1:2], rtol=1e-4, atol=1e-5)


def test_features_end_at_the_bound_and_classes_do_not_mind() -> None:
    torch.manual_seed(0)
    model = VideoClassifier(
        ClassifierConfig(width=8, features=6, differences=True, bound=4.0, classes=("a", "b"))
    )
    video = torch.rand(64, 3, 5, 16, 16) * 2 - 1
    model.fit_scales(video)
    with torch.no_grad():
        model.fit_bound(model.embed(video))
        logits = model(video)[1]
        assert torch.equal(logits, model.class_logits(model.embed(video)))
        for size, near in ((1, True), (1000, False)):
            z = (model(size * video)[0] - model.mean) / model.deviation
            raw = (model.embed(size * video) - model.mean) / model.deviation
            torch.testing.assert_close(z.double(), 4 * torch.tanh(raw.double() / 4), rtol=1e-3, atol=1e-4)
            assert z.abs().max() <= 4 + 1e-4
            assert bool((z - raw).abs().mean() < 0.1) == near
    z = (model.embed(video) - model.mean) / model.deviation
    torch.testing.assert_close(z.mean(0), torch.zeros(6), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(6), rtol=1e-3, atol=0)


def test_shift_repeats_the_border() -> None:
    clip = torch.arange(9).view(1, 1, 3, 3)
    assert shifted(clip, 1, -1).squeeze().tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]
    assert torch.equal(shifted(clip, 0, 0), clip)


def test_transforms_change_the_clip_and_keep_its_pixels() -> None:
    clip = torch.arange(3 * 5 * 4).view(3, 5, 4, 1)
    for kind in ("reversed", "shuffled", "upside down"):
        changed = transformed(clip, kind, torch.Generator().manual_seed(0))
        assert not torch.equal(changed, clip)
        assert torch.equal(changed.flatten(1).sort().values, clip.flatten(1).sort().values)
    assert torch.equal(transformed(clip, "untouched", torch.Generator()), clip)


def test_settings_survive_the_way_to_the_worker_and_say_what_is_wrong() -> None:
    assert build(ClassifierSettings, plain(SETTINGS)) == SETTINGS
    with pytest.raises(ValueError, match="classifier transformed: found 1.0, must lie in"):
        build(ClassifierSettings, {**plain(SETTINGS), "transformed": 1.0})


def test_a_missing_classifier_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json: no such file"):
        load_classifier(tmp_path)


def test_differences_of_frames_are_an_input_where_they_are_asked_for() -> None:
    """A step from one frame to the next, and no step."""
    first, body = (
        VideoClassifier(ClassifierConfig(width=4, features=2, differences=asked, bound=4.0, classes=())).body
        for asked in (False, True)
    )
    assert first[0].in_channels == 3
    video = torch.arange(6.0).square().view(1, 1, 6, 1, 1).expand(1, 3, 6, 16, 16)
    seen = body[0](video)
    assert torch.equal(seen[:, :3], video)
    assert seen[0, 3:, :, 0, 0].tolist() == [[0, 1, 3, 5, 7, 9]] * 3
    assert body[0](video[:, :, :1])[0, 3:].abs().sum() == 0
