"""Clips to latents: the same bytes by any number of ranks and after any number of violent ends."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.launch.agent import run_job
from qdm_pipeline.launch.jobs import encode_clips
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.video.autoencoder import (
    AutoencoderConfig,
    CausalVideoAutoencoder,
    load_autoencoder,
    to_float,
)
from qdm_pipeline.video.encode import DTYPES, EncodeSettings, encode_latents
from qdm_pipeline.video.shards import ShardSet

CONFIG = AutoencoderConfig(
    channels=3, latent_channels=16, time_patch=4, space_patch=8, width=16, encoder_blocks=1, decoder_blocks=1
)
SETTINGS = EncodeSettings(batch=5, shard_size=10, dtype="fp32", tile=None, text=None)


@pytest.fixture
def model() -> CausalVideoAutoencoder:
    torch.manual_seed(0)
    return CausalVideoAutoencoder(CONFIG)


def make_run(clips: ShardSet, root: Path, settings: EncodeSettings = SETTINGS) -> Run:
    inputs = {
        "clips": Handle("clips", clips.directory, clips.digest),
        "autoencoder": Handle("autoencoder", root / "autoencoder", "ab"),
    }
    return Run.create("latents", settings, inputs, root)


def encode(
    model: CausalVideoAutoencoder, clips: ShardSet, root: Path, settings: EncodeSettings = SETTINGS
) -> ShardSet:
    handle = encode_latents(settings, clips, model, Ranks(), make_run(clips, root, settings))
    assert handle is not None
    return ShardSet(handle.path)


def content(shards: ShardSet) -> dict[str, bytes]:
    """Every file of the directory but the settings and what only says when files were written."""
    names = {path.name for path in shards.directory.iterdir()}
    return {name: (shards.directory / name).read_bytes() for name in names - {"run.json", ".verified.json"}}


def test_latents_keep_the_columns_and_the_order(
    model: CausalVideoAutoencoder, demo_clips: ShardSet, tmp_path: Path
) -> None:
    latents = encode(model, demo_clips, tmp_path)
    assert latents.manifest["shapes"] == [[16, 3, 4, 4]] and latents.manifest["autoencoder"] == "ab"
    for name in ("id", "file", "start", "end", "split", "label", "caption"):
        assert latents.column(name) == demo_clips.column(name)
    rows = torch.tensor([83, 7])
    with torch.no_grad():
        expected = model.encode(to_float(demo_clips.gather("video", rows)))
    torch.testing.assert_close(latents.gather("latent", rows), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_small_dtypes_are_kept(
    dtype: str, model: CausalVideoAutoencoder, demo_clips: ShardSet, tmp_path: Path
) -> None:
    whole = encode(model, demo_clips, tmp_path)
    small = encode(model, demo_clips, tmp_path, replace(SETTINGS, dtype=dtype))
    rows = torch.arange(len(whole))
    assert small.gather("latent", rows).dtype == DTYPES[dtype]
    assert torch.equal(small.gather("latent", rows), whole.gather("latent", rows).to(DTYPES[dtype]))


def test_latents_that_are_not_finite_are_refused(
    model: CausalVideoAutoencoder, demo_clips: ShardSet, tmp_path: Path
) -> None:
    model.std.fill_(1e-6)
    with pytest.raises(InputError, match="clip 0 of videos/00000.mp4: its latent is not finite in fp16"):
        encode(model, demo_clips, tmp_path, replace(SETTINGS, dtype="fp16"))


def test_an_encoder_of_diffusers_takes_the_same_way(demo_clips: ShardSet, tmp_path: Path) -> None:
    wan = diffusers.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                     latents_mean=[0.0] * 4, latents_std=[1.0] * 4)  # fmt: skip
    wan.save_pretrained(tmp_path / "autoencoder")
    run = make_run(
        demo_clips, tmp_path, EncodeSettings(batch=42, shard_size=42, dtype="bf16", tile=None, text=None)
    )
    encode_clips(run, Ranks())
    latents = ShardSet(run.directory)
    assert latents.manifest["shapes"] == [[4, 3, 4, 4]] and len(latents) == 84
    video = to_float(demo_clips.gather("video", torch.tensor([7])))
    expected = load_autoencoder(tmp_path / "autoencoder").encode(video)
    torch.testing.assert_close(
        latents.gather("latent", torch.tensor([7])).float(), expected, atol=0.01, rtol=0.01
    )


def test_two_ranks_write_what_one_writes(
    model: CausalVideoAutoencoder, demo_clips: ShardSet, tmp_path: Path
) -> None:
    model.save(tmp_path / "autoencoder")
    alone = encode(model, demo_clips, tmp_path)
    shutil.move(alone.directory, tmp_path / "alone")
    two = run_job(make_run(demo_clips, tmp_path), world_size=2)
    assert content(ShardSet(two.path)) == content(ShardSet(tmp_path / "alone"))


def test_a_changed_encoder_does_not_go_on(
    model: CausalVideoAutoencoder, demo_clips: ShardSet, tmp_path: Path
) -> None:
    latents = encode(model, demo_clips, tmp_path)
    (latents.directory / "manifest.json").unlink()
    (latents.directory / "identity.json").write_text('{"autoencoder": "cd", "kind": "latents"}')
    with pytest.raises(InputError, match="identity.json: autoencoder: found 'cd', these samples have 'ab'"):
        encode(model, demo_clips, tmp_path)


def started(run: Run, model: CausalVideoAutoencoder, clips: ShardSet, settings: EncodeSettings) -> int:
    """The process id of a child that encodes and ends."""
    if (child := os.fork()) == 0:
        try:
            encode_latents(settings, clips, model, Ranks(), run)
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_a_killed_encode_goes_on_and_ends_with_the_same_bytes(
    kills: int, demo_clips: ShardSet, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = CausalVideoAutoencoder(replace(CONFIG, width=128, encoder_blocks=2))
    settings = EncodeSettings(batch=1, shard_size=2, dtype="fp32", tile=None, text=None)
    begun = time.monotonic()
    alone = encode(model, demo_clips, tmp_path, settings)
    lasted = time.monotonic() - begun
    shutil.move(alone.directory, tmp_path / "alone")
    run = make_run(demo_clips, tmp_path, settings)
    draw, killed = random.Random(0), 0
    while killed < kills:
        child = started(run, model, demo_clips, settings)
        time.sleep(draw.random() * 2 * lasted / kills)
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if run.result() is not None and killed < kills:  # it was done in time: once more from the start
            shutil.rmtree(run.directory)
            make_run(demo_clips, tmp_path, settings)
    assert encode(model, demo_clips, tmp_path, settings).digest == alone.digest
    assert content(ShardSet(run.directory)) == content(ShardSet(tmp_path / "alone"))
