"""How far a clip's last frame is from its first, as the classifier sees them."""

from pathlib import Path

import pytest
import torch

from qdm_pipeline.evaluation.extractors import of_classifier
from qdm_pipeline.evaluation.features import ClassifierConfig, VideoClassifier
from qdm_pipeline.evaluation.observe import Observation, Observer
from qdm_pipeline.evaluation.rows import compare
from qdm_pipeline.ranks import Ranks


def observed(
    classes: tuple[str, ...], videos: torch.Tensor, cache: Path
) -> tuple[VideoClassifier, Observation]:
    torch.manual_seed(0)
    config = ClassifierConfig(width=4, features=6, differences=True, bound=0.1, classes=classes)
    classifier = VideoClassifier(config).eval().requires_grad_(False)
    classifier.fit_scales(videos / 127.5 - 1)
    if classifier.class_head is not None:
        torch.nn.init.zeros_(classifier.class_head.bias)  # what is seen decides
    extractor = of_classifier(classifier, torch.device("cpu"))
    observer = Observer(extractor, classifier, 5, 3, 0, cache, Ranks())
    return classifier, observer.observe(lambda rows: videos[rows], torch.zeros(len(videos), dtype=torch.long))


@pytest.fixture
def videos() -> torch.Tensor:
    """Twelve clips, of which the first six stand still."""
    clips = torch.randint(256, (12, 3, 5, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    clips[:6] = clips[:6, :, :1]
    clips[6:, :, -1] //= torch.arange(1, 7, dtype=torch.uint8).view(6, 1, 1, 1)  # some end dark
    return clips


def test_it_is_that_of_first_and_last_frame_held_still(videos: torch.Tensor, tmp_path: Path) -> None:
    classifier, seen = observed(("a", "b", "c"), videos, tmp_path)
    assert seen.drift[:6].abs().max() < 1e-6 and seen.drift[6:].min() > 1e-3
    held = [videos[:, :, t : t + 1].expand_as(videos) / 127.5 - 1 for t in (0, 4)]
    (first, one), (last, other) = (classifier(each) for each in held)
    torch.testing.assert_close(seen.drift, (first - last).norm(dim=1), rtol=1e-4, atol=1e-6)
    assert (
        seen.same.bool().tolist() == (one.argmax(1) == other.argmax(1)).tolist() and 6 <= seen.same.sum() < 12
    )
    row = compare("x", seen, seen, 5, 10)
    assert row["identity"] == pytest.approx(float(seen.same.mean()))
    assert row["drift"] == pytest.approx(float(seen.drift.mean()))


def test_classes_are_told_from_features_that_are_not_bent(videos: torch.Tensor, tmp_path: Path) -> None:
    classifier, seen = observed(("a", "b", "c"), videos, tmp_path)
    torch.testing.assert_close(seen.logits, classifier(videos / 127.5 - 1)[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen.logits, classifier.class_logits(seen.features), atol=1e-3)


def test_without_classes_there_is_no_identity(videos: torch.Tensor, tmp_path: Path) -> None:
    _, seen = observed((), videos, tmp_path)
    assert compare("x", seen, seen, 5, 10)["identity"] is None
