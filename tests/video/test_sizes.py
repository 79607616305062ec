"""Clips of several sizes: each video takes the one most like it, and no shard or batch mixes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdm_pipeline.handle import Handle
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder, to_float
from qdm_pipeline.video.autoencoder_task import AutoencoderSettings, AutoencoderTask
from qdm_pipeline.video.encode import EncodeSettings, encode_latents
from qdm_pipeline.video.media import write_mp4
from qdm_pipeline.video.shards import ShardSet, ShardWriter

SIZES = ((16, 32), (32, 16), (24, 24))
SHAPES = {"wide": (20, 44), "high": (60, 34), "square": (40, 42)}
CONFIG = AutoencoderConfig(
    channels=3, latent_channels=4, time_patch=4, space_patch=8, width=8, encoder_blocks=1, decoder_blocks=1
)
Cut = Callable[..., Handle]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve videos of each shape, in no order, and one that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(36):
        kind = list(SHAPES)[number % 3]
        video = torch.full((3, 9, *SHAPES[kind]), 7 * number, dtype=torch.uint8)
        write_mp4(folder / f"{number:02}-{kind}.mp4", video, fps=8)
    (folder / "10-broken.mp4").write_bytes(b"no video")
    return folder


def sizes(shards: ShardSet) -> dict[str, set[tuple[int, ...]]]:
    """The shapes of the clips of each kind of file, by their bytes."""
    found: dict[str, set[tuple[int, ...]]] = {kind: set() for kind in SHAPES}
    for row, file in enumerate(shards.column("file")):
        clip = shards.gather("video", torch.tensor([row]))[0]
        assert (clip.float().mean() - 7 * int(file[:2])).abs() < 3  # its own pixels
        found[file[3:-4]].add(tuple(clip.shape[-2:]))
    return found


def test_every_video_takes_the_size_most_like_it(folder: Path, cut: Cut) -> None:
    handle = cut(folder, size=SIZES, shard_size=5, decoders=2)
    shards = ShardSet(handle.path)
    assert sizes(shards) == {"wide": {SIZES[0]}, "high": {SIZES[1]}, "square": {SIZES[2]}}
    assert handle.metadata["sizes"] == {"16x32": 12, "32x16": 12, "24x24": 12}
    assert [row["file"] for row in shards.manifest["skipped"]] == ["10-broken.mp4"]
    assert shards.column("id") == list(range(36))


def test_one_size_in_a_list_is_that_size(folder: Path, cut: Cut) -> None:
    listed, plain = cut(folder, size=((16, 32),)), cut(folder, size=(16, 32))
    assert listed.digest == plain.digest


def test_a_killed_run_goes_on_to_the_same_bytes(
    folder: Path, cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cut(folder, size=SIZES, shard_size=5)
    put, written = ShardWriter.put, list[int]()

    def die(writer: ShardWriter, number: int, *rest: object, **more: object) -> None:
        if number == 4:
            raise KeyboardInterrupt
        written.append(number)
        put(writer, number, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "put", die)
        cut(folder, size=SIZES, shard_size=5, root=tmp_path)
    assert written == [0, 1, 2, 3]
    assert cut(folder, size=SIZES, shard_size=5, root=tmp_path).digest == whole.digest


@pytest.fixture
def clips(folder: Path, cut: Cut) -> ShardSet:
    return ShardSet(cut(folder, size=SIZES, shard_size=7).path)


def test_latents_are_those_of_each_clip_alone(clips: ShardSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CausalVideoAutoencoder(CONFIG)
    inputs = {name: Handle(name, tmp_path / name, name) for name in ("clips", "autoencoder")}
    settings = EncodeSettings(batch=5, shard_size=8, dtype="fp32", tile=None, text=None)
    handle = encode_latents(
        settings, clips, model, Ranks(), Run.create("latents", settings, inputs, tmp_path)
    )
    assert handle is not None
    latents = ShardSet(handle.path)
    assert latents.manifest["shapes"] == [[4, 3, 2, 4], [4, 3, 4, 2], [4, 3, 3, 3]]
    assert latents.column("file") == clips.column("file") and latents.manifest["space"] == 8
    for row in range(len(clips)):
        one = torch.tensor([row])
        with torch.no_grad():
            expected = model.encode(to_float(clips.gather("video", one)))
        torch.testing.assert_close(latents.gather("latent", one), expected, atol=1e-5, rtol=1e-5)
    view = latents.of_size(latents.size_with("latent", (4, 3, 4, 2)))
    assert view.shape("latent") == (4, 3, 4, 2) and len(view.rows("train")) < len(latents.rows("train"))
    with pytest.raises(ValueError, match="samples of 3 sizes"):
        latents.shape("latent")


def test_parts_keep_the_order_and_never_mix(clips: ShardSet) -> None:
    rows = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))
    parts = clips.parts(rows, 4)
    assert torch.equal(torch.cat(parts), rows) and max(map(len, parts)) <= 4
    assert all(len(clips.size_of[part].unique()) == 1 for part in parts)
    assert clips.parts(rows[:0], 4) == []


def test_an_autoencoder_learns_from_all_sizes(clips: ShardSet, tmp_path: Path) -> None:
    settings = AutoencoderSettings(
        model=CONFIG, latent_noise=0.1, decoder_noise=0.1, kl_weight=0.001, precision="fp32", steps=12,
        decoder_steps=0, batch=4, micro_batch=2, learning_rate=1e-3, warmup=1, weight_decay=0.0, clip=1.0,
        log_every=1, seed=0, checkpoint={"every": 10, "keep_last": 1, "keep_every": None},
    )  # fmt: skip
    task = AutoencoderTask(settings, clips, Ranks())
    errors, seen = list[float](), set[int]()
    for step in range(12):
        seen |= {int(clips.size_of[task.rows[micro.rows]][0]) for micro in task.batches.of(step)}
        error = task.train_step(step)["error"]
        assert isinstance(error, Tensor)
        errors.append(float(error))
    assert seen == {0, 1, 2} and sum(errors[-4:]) < sum(errors[:4])
    assert all(psnr > 5 for psnr in task.export(tmp_path)["psnr"].values())
