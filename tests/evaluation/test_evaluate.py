"""The whole evaluation on tiny sets: its schema, and numbers that are known beforehand."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.code_dropout import DAMAGES, SHARES
from qdm_pipeline.evaluation.data import Data, EvaluationSettings
from qdm_pipeline.evaluation.evaluate import evaluate
from qdm_pipeline.evaluation.features import ClassifierConfig, VideoClassifier
from qdm_pipeline.evaluation.gallery import code_maps, gallery, places_by_class
from qdm_pipeline.evaluation.judge import Judge
from qdm_pipeline.evaluation.observe import Observation, Observer
from qdm_pipeline.evaluation.readers import clip_reader
from qdm_pipeline.evaluation.rows import COLUMNS, memorisation
from qdm_pipeline.files import write_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.models.predictor import PredictorConfig, PredictorSettings, QuantizedDiffusionPredictor
from qdm_pipeline.models.quantizer import QuantizerSettings
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.tracking import numbers
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder, to_float
from qdm_pipeline.video.shards import write_shards

CODES = 4


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSettings:
    folder = tmp_path_factory.mktemp("evaluation")
    return EvaluationSettings(
        samples=24,
        batch=5,
        blocks=10,
        extractor="classifier",
        weights=str(folder / "extractors"),
        cache=str(folder / "cache"),
        neighbours=3,
        splits=4,
        corrupted=10,
        train_clips=20,
        columns=4,
        lines=2,
        seed=0,
    )


class Alone(Ranks):
    """One of several ranks, whose parts the test merges itself."""

    def gather(self, value: object) -> list[object]:
        return [value]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """60 noisy clips of 5 frames in 3 classes, an untrained autoencoder and an untrained classifier."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = AutoencoderConfig(
        channels=3,
        latent_channels=6,
        time_patch=4,
        space_patch=8,
        width=4,
        encoder_blocks=0,
        decoder_blocks=0,
    )
    autoencoder = CausalVideoAutoencoder(config).eval()
    videos = torch.randint(256, (60, 3, 5, 16, 16), generator=draw).to(torch.uint8)
    autoencoder.start_as_pca(to_float(videos))
    with torch.no_grad():
        latents = autoencoder.encode(to_float(videos))
    columns = [
        {"id": i, "file": f"{i}.mp4", "split": "train" if i < 30 else "test", "label": i % 3}
        for i in range(60)
    ]
    classes = ["a", "b", "c"]
    folder = tmp_path_factory.mktemp("data")
    clips, latent_shards = (
        write_shards(
            folder / field,
            (({field: tensor}, row) for tensor, row in zip(tensors, columns, strict=True)),
            {"kind": field, "classes": classes, "fps": 8},
            64,
        )
        for field, tensors in (("video", videos), ("latent", latents))
    )
    classifier = VideoClassifier(
        ClassifierConfig(width=8, features=4, differences=True, bound=4.0, classes=tuple(classes))
    )
    classifier.fit_scales(to_float(videos))
    quantizer = QuantizerSettings(
        kind="vq", codebook_size=CODES, codebook_dim=2, groups=3, decay=0.9, revival_threshold=0.0
    )
    size = PredictorSettings(
        width=16,
        depth=1,
        heads=2,
        patch=(1, 1, 1),
        attention="full",
        embedding_dim=6,
        residual_dim=0,
        quantizer=quantizer,
    )
    model = QuantizedDiffusionPredictor(
        PredictorConfig(size=size, latent_channels=6, classes=(), vocabulary=(), caption_length=0)
    )
    frozen = (classifier.eval().requires_grad_(False), model.eval().requires_grad_(False))
    return Data(clips, latent_shards, autoencoder, *frozen)


def write_samples(folder: Path, name: str, latents: Tensor, classes: list[str] | None = None) -> Path:
    metadata = {
        "name": name,
        "nfe": 8,
        "guidance": 1.5,
        "steps": 4,
        "seconds_per_clip": 0.1,
        "mebibytes_per_clip": 0.5,
        "codebook_size": CODES,
        "classes": classes or ["a", "b", "c"],
        "path": "continuous",
    }
    folder.mkdir()
    count, _, *grid = latents.shape
    codes = (torch.arange(latents[:, 0].numel()) % CODES).view(count, 1, *grid).int()
    labels = torch.arange(count) % 3
    save_file({"latents": latents, "codes": codes, "labels": labels}, folder / "samples.safetensors")
    write_json(folder / "done.json", Handle("samples", folder, "0", metadata).to_json())
    return folder


def decode_codes(codes: Tensor) -> Tensor:
    return codes.float().expand(-1, 6, -1, -1, -1)


def test_rows_have_the_schema_and_the_numbers_that_are_known(
    settings: EvaluationSettings, data: Data, tmp_path: Path
) -> None:
    test_latents = data.latents.gather("latent", data.latents.rows("test"))
    sets = [
        write_samples(tmp_path / "teacher", "teacher", test_latents),
        write_samples(tmp_path / "student", "student", torch.zeros(24, 6, 2, 2, 2)),
    ]
    result = evaluate(settings, sets, data, {"teacher": decode_codes}, Ranks())
    assert result["metric"] == "frechet[classifier-2plus1d-diff-4d-bound4,5f,16,24]"
    assert result["reference"] == {"split": "test", "count": 24}
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "teacher",
        "teacher-quantized",
        "student",
        "real",
        "shuffled",
        "noise",
        "reconstruction",
    ]
    assert all(tuple(row) == COLUMNS for row in result["rows"])
    assert all(row["frechet_low"] <= row["frechet"] <= row["frechet_high"] for row in result["rows"])
    assert all(row["count"] == 24 and 0 <= row["accuracy"] <= 1 for row in result["rows"])
    assert rows["student"]["latent_std"] == 0
    assert rows["student"]["frechet"] > rows["real"]["frechet"]
    assert (rows["teacher"]["utilization"], rows["teacher"]["perplexity"]) == (1.0, pytest.approx(CODES))
    assert rows["teacher"]["utilization_tokens"] == 30 * 8
    assert (rows["teacher"]["nfe"], rows["real"]["nfe"]) == (8, None)
    assert rows["teacher-quantized"]["latent_mean"] == pytest.approx(1.5)
    assert 5 < rows["reconstruction"]["psnr"] < 40
    assert all(row["frechet_limit_low"] <= row["frechet_limit"] <= row["frechet"] for row in rows.values())
    assert rows["student"]["recall"] == 0  # one clip, 24 times
    assert 0 < rows["real"]["patches"] < rows["noise"]["patches"]
    assert rows["noise"]["motion_distance"] > 0 and 1 <= rows["real"]["class_score"] <= 3
    assert rows["teacher"]["bits_per_second"] == pytest.approx(8 * 2 * 8 / 5)  # 8 tokens of 2 bits, 8 fps
    assert rows["teacher"]["entropy_bits_per_second"] == pytest.approx(8 * 2 * 8 / 5)
    assert rows["teacher"]["compression"] == pytest.approx(24 * 16 * 16 * 5 / 16)
    assert rows["student"]["nearest_train"] > 0 and rows["real"]["nearest_train"] is None
    assert len(result["corruptions"]) == 9 and result["warnings"] == []
    assert (rows["teacher"]["mebibytes_per_clip"], rows["real"]["mebibytes_per_clip"]) == (0.5, None)
    losses = result["code_dropout"]
    assert [one["kind"] for one in losses] == [kind for kind in DAMAGES for _ in range(1 + len(SHARES))]
    assert len({(one["frechet"], one["psnr"]) for one in losses if one["share"] == 0}) == 1
    assert result["extractor"]["name"] == "classifier-2plus1d-diff-4d-bound4"
    json.dumps(result, allow_nan=False)


class Together(Ranks):
    """A rank in a thread of this process; what all put down at one place is gathered."""

    def gather(self, value: object) -> list[object]:
        desk[self.rank] = value
        met[self.world].wait()
        found = [desk[rank] for rank in range(self.world)]
        met[self.world].wait()
        return found


desk: dict[int, object] = {}
met = {world: Barrier(world, timeout=300) for world in (2, 4)}


def test_2_and_4_ranks_find_the_numbers_of_one(
    settings: EvaluationSettings, data: Data, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(3)
    path = write_samples(tmp_path / "student", "student", torch.randn(24, 6, 2, 2, 2, generator=draw))

    def run(ranks: Ranks) -> dict[str, Any]:
        fresh = replace(settings, cache=str(tmp_path / f"cache{ranks.world}"))
        return evaluate(fresh, [path], data, {}, ranks)

    for world in (2, 4):
        alone = run(Ranks())
        with ThreadPoolExecutor(world) as pool:
            results = list(pool.map(run, [Together(rank, world) for rank in range(world)]))
        assert all(result == results[0] for result in results)
        for part in ("rows", "corruptions"):
            for one, other in zip(alone[part], results[0][part], strict=True):
                assert numbers(other) == pytest.approx(numbers(one), rel=1e-9, abs=1e-9)


def test_what_was_seen_in_real_clips_is_kept_until_something_changes(
    settings: EvaluationSettings, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_samples(tmp_path / "student", "student", torch.zeros(24, 6, 2, 2, 2))
    cached = replace(settings, cache=str(tmp_path / "cache"))
    first = evaluate(cached, [path], data, {}, Ranks())
    kept = set((tmp_path / "cache").iterdir())
    looked = []
    look = Observer._look
    monkeypatch.setattr(Observer, "_look", lambda self, video: looked.append(len(video)) or look(self, video))
    assert evaluate(cached, [path], data, {}, Ranks()) == first
    assert sum(looked) == 48  # the samples and the reconstructions
    assert set((tmp_path / "cache").iterdir()) == kept
    evaluate(replace(cached, seed=1), [path], data, {}, Ranks())
    assert len(set((tmp_path / "cache").iterdir())) > len(kept)


def test_too_few_clips_are_said(settings: EvaluationSettings, data: Data, tmp_path: Path) -> None:
    path = write_samples(tmp_path / "student", "student", torch.zeros(4, 6, 2, 2, 2))
    result = evaluate(settings, [path], data, {}, Ranks())
    assert len(result["warnings"]) == 1
    assert result["warnings"][0].startswith("student: 4 clips for 4 features: its Fréchet distance is far")


def test_ranks_merge_into_what_one_rank_sees(data: Data) -> None:
    rows = data.clips.rows("train")
    videos, labels = clip_reader(data.clips, rows), torch.arange(30) % 3
    one, first, second = (
        Judge(data.classifier, 4, 10, 0, ranks).tally(videos, labels)
        for ranks in (Ranks(), Alone(0, 2), Alone(1, 2))
    )
    both = first.merge(second)
    assert (one.count, one.asked) == (30, 30)
    for counted in ("count", "asked", "right", "same"):
        assert getattr(both, counted) == getattr(one, counted)
    for a, b in zip(both.blocks, one.blocks, strict=True):
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.scatter, b.scatter, rtol=1e-12, atol=1e-12)


def test_the_gallery_shows_the_same_class_in_the_same_place(
    settings: EvaluationSettings, data: Data, tmp_path: Path
) -> None:
    path = write_samples(tmp_path / "student", "student", torch.randn(7, 6, 2, 2, 2))
    shown = gallery(settings, [path], data)
    assert shown["classes"].tolist() == [0, 1, 2, 0]
    videos = {name: value for name, value in shown.items() if name.startswith("videos/")}
    assert videos.keys() == {"videos/real", "videos/reconstruction", "videos/student"}
    assert all(value.shape == (2, 4, 3, 5, 16, 16) for value in videos.values())
    real = shown["guess/clips"][~shown["guess/made"]]
    assert real.shape == (8, 3, 5, 16, 16) and len(shown["guess/clips"]) == 16
    assert not any(torch.equal(one, clip) for one in real for clip in videos["videos/real"].flatten(0, 1))
    assert shown["usage/student"].tolist() == [[14] * CODES]
    assert shown["usage/real"].sum(1).tolist() == [24 * 8] * 3
    assert shown["codes/student"].shape == (2, 2, 3, 5, 16, 16)
    assert shown["codes/real"].shape == (2, 4, 3, 5, 16, 16)
    assert sum(name.startswith("used/") for name in shown) == 3
    assert shown["nearest/student"].shape == (2, 4, 3, 5, 16, 16)
    train = data.clips.gather("video", data.clips.rows("train")[: settings.train_clips])
    assert all(any(torch.equal(one, clip) for clip in train) for one in shown["nearest/student"][1])


def test_copies_of_train_clips_are_found() -> None:
    draw = torch.Generator().manual_seed(0)
    train, test, fresh = (torch.randn(60, 8, generator=draw) for _ in range(3))

    def seen(features: Tensor) -> Observation:
        nothing, blocks = torch.zeros(60, 0), torch.zeros(60, dtype=torch.long)
        return Observation(features, features, *[nothing] * 5, *[blocks] * 2, 1, 1)

    assert memorisation(seen(test), seen(test), train) == 1
    assert memorisation(seen(fresh), seen(test), train) == pytest.approx(1, abs=0.3)
    assert memorisation(seen(train + 0.01), seen(test), train) < 0.05


def test_a_code_has_one_colour_in_its_place() -> None:
    codes = torch.tensor([[[[0, 1]], [[1, 1]]]])  # one group, two latent frames of 1 x 2
    maps = code_maps(torch.zeros(3, 5, 4, 8, dtype=torch.uint8), codes)
    assert maps.shape == (2, 3, 5, 4, 8)
    zero, one = maps[1, :, 0, 0, 0], maps[1, :, 0, 0, 7]
    assert not torch.equal(zero, one)
    assert (maps[1, :, 0, :, :4] == zero.view(3, 1, 1)).all()
    assert (maps[1, :, 1:] == one.view(3, 1, 1, 1)).all()


def test_places_fall_back_to_what_is_left() -> None:
    labels = torch.tensor([2, 0, 1, 0])
    assert places_by_class(labels, torch.tensor([0, 1, 2, 0, 1])).tolist() == [1, 2, 0, 3, 2]
    assert places_by_class(torch.tensor([-1, -1]), torch.tensor([-1] * 3)).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("latents", "classes", "message"),
    [
        (torch.zeros(24, 6, 3, 2, 2), None, r"latents of x have shape \(6, 3, 2, 2\), those of the clips"),
        (torch.full((24, 6, 2, 2, 2), torch.nan), None, "the latents of x are not finite"),
        (torch.zeros(2, 6, 2, 2, 2), None, "2 samples are too few, 3 are needed"),
        (
            torch.zeros(24, 6, 2, 2, 2),
            ["a", "c"],
            r"asked for the classes \['a', 'c'\], the classifier knows",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_named(
    settings: EvaluationSettings,
    data: Data,
    tmp_path: Path,
    latents: Tensor,
    classes: list[str] | None,
    message: str,
) -> None:
    path = write_samples(tmp_path / "x", "x", latents, classes)
    with pytest.raises(InputError, match=message):
        evaluate(settings, [path], data, {}, Ranks())


def test_two_sets_of_one_name(settings: EvaluationSettings, data: Data, tmp_path: Path) -> None:
    paths = [write_samples(tmp_path / str(i), "x", torch.zeros(24, 6, 2, 2, 2)) for i in range(2)]
    with pytest.raises(InputError, match="names must differ"):
        evaluate(settings, paths, data, {}, Ranks())
