import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.video.autoencoder import (
    AutoencoderConfig,
    CausalVideoAutoencoder,
    load_autoencoder,
    to_float,
)
from qdm_pipeline.video.autoencoder_task import AutoencoderSettings, AutoencoderTask, visible_error
from qdm_pipeline.video.shards import ShardSet

CONFIG = AutoencoderConfig(
    channels=3, latent_channels=16, time_patch=4, space_patch=8, width=16, encoder_blocks=1, decoder_blocks=1
)
SETTINGS = AutoencoderSettings(
    model=CONFIG, latent_noise=0.1, decoder_noise=0.05, kl_weight=0.002, precision="fp32", steps=30,
    decoder_steps=0, batch=8, micro_batch=8, learning_rate=3e-3, warmup=5, weight_decay=0.0, clip=1.0,
    log_every=10, checkpoint=Retention(every=10, keep_last=2, keep_every=None), seed=0,
)  # fmt: skip


def trained(task: AutoencoderTask, first: int, last: int) -> list[float]:
    return [float(task.train_step(step)["error"]) for step in range(first, last)]


def busy(model: CausalVideoAutoencoder) -> CausalVideoAutoencoder:
    """``model`` with every residual branch switched on."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_shapes_for_several_sizes() -> None:
    model = CausalVideoAutoencoder(CONFIG)
    for frames, height, width in ((1, 32, 32), (9, 32, 32), (17, 16, 40)):
        video = torch.randn(2, 3, frames, height, width)
        latents = model.encode(video)
        assert latents.shape == (2, *model.latent_shape(frames, height, width))
        assert latents.shape == (2, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        assert model.decode(latents).shape == video.shape


@pytest.mark.parametrize(
    ("shape", "message"), [((8, 32, 32), r"8 frames, must be 4k \+ 1"), ((9, 32, 36), "36x32")]
)
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CausalVideoAutoencoder(CONFIG).encode(torch.zeros(1, 3, *shape))


def test_patches_round_trip() -> None:
    model, video = CausalVideoAutoencoder(CONFIG), torch.randn(2, 3, 9, 16, 24)
    assert torch.equal(model.unpatchify(model.patchify(video)), video)


def test_no_latent_and_no_frame_looks_ahead() -> None:
    torch.manual_seed(0)
    model, video = busy(CausalVideoAutoencoder(CONFIG)), torch.randn(1, 3, 13, 16, 16)
    latents = model.encode(video)
    torch.testing.assert_close(model.encode(video[:, :, :5]), latents[:, :, :2])
    torch.testing.assert_close(model.decode(latents[:, :, :2]), model.decode(latents)[:, :, :5])


def test_pca_start_is_whitened_and_beats_the_mean(demo_clips: ShardSet) -> None:
    video = to_float(demo_clips.gather("video", demo_clips.rows("train")))
    model = CausalVideoAutoencoder(CONFIG)
    model.start_as_pca(video)
    latents = model.encode(video)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-2, rtol=0)
    held_out = to_float(demo_clips.gather("video", demo_clips.rows("test")))
    error = (model.decode(model.encode(held_out)) - held_out).square().mean()
    assert error < 0.25 * (held_out - video.mean(0)).square().mean()


def test_training_lowers_the_error_and_export_normalises(demo_clips: ShardSet, tmp_path: Path) -> None:
    task = AutoencoderTask(SETTINGS, demo_clips, Ranks())
    errors = trained(task, 0, 30)
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])
    metadata = task.export(tmp_path)
    assert 18 < metadata["psnr"]["validation"] < 40
    model = load_autoencoder(tmp_path)
    latents = model.encode(to_float(demo_clips.gather("video", demo_clips.rows("train"))))
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3, rtol=0)


def test_the_decoder_learns_on_alone_behind_the_same_latents(demo_clips: ShardSet) -> None:
    short = AutoencoderTask(SETTINGS, demo_clips, Ranks())
    task = AutoencoderTask(replace(SETTINGS, decoder_steps=60, weight_decay=0.1), demo_clips, Ranks())
    short.optimizer.param_groups[0]["weight_decay"] = 0.1
    assert trained(task, 0, 30) == trained(short, 0, 30) and task.steps == 90
    encoder = copy.deepcopy(short.model.encoder.state_dict())
    before, state = short.model.decoder.state_dict(), copy.deepcopy(task.state_dict())
    rates = [task.train_step(step)["learning_rate"] for step in range(30, 90)]
    assert rates == [task._rate(step) for step in range(30, 90)]
    assert rates[0] == pytest.approx(SETTINGS.learning_rate / 6) and max(rates) == rates[5] > 10 * rates[-1]
    for name, weight in task.model.encoder.state_dict().items():
        assert torch.equal(weight, encoder[name]), name
    assert not torch.equal(task.model.decoder.head.weight, before["head.weight"])
    video = to_float(demo_clips.gather("video", demo_clips.rows("train")))
    error, error_before = (
        (model.decode(model.encode(video)) - video).square().mean() for model in (task.model, short.model)
    )
    assert error < 0.95 * error_before
    again = AutoencoderTask(task.settings, demo_clips, Ranks())
    again.load_state_dict(state)
    trained(again, 30, 90)
    assert all(
        torch.equal(a, b) for a, b in zip(again.model.parameters(), task.model.parameters(), strict=True)
    )


def test_black_may_be_blacker_and_white_whiter() -> None:
    video = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    made = torch.tensor([-1.5, -1.0, 0.5, 1.5, 1.0, -2.0, 1.5, -1.5], requires_grad=True)
    error = visible_error(made, video)
    assert error.tolist() == [0.0, 0.0, 1.5, 0.0, 0.0, -3.0, 1.0, -2.0]
    (gradient,) = torch.autograd.grad(error.square().sum(), made)
    assert gradient.tolist() == [0.0, 0.0, 3.0, 0.0, 0.0, -6.0, 2.0, -4.0]  # grey is found from beyond
    seen = made.detach().clamp(-1, 1) - video
    assert bool((error.detach().abs() >= seen.abs()).all()) and (error == 0).tolist() == (seen == 0).tolist()


def test_resumed_training_is_the_same_training(demo_clips: ShardSet, tmp_path: Path) -> None:
    whole = AutoencoderTask(SETTINGS, demo_clips, Ranks())
    expected = trained(whole, 0, 6)
    first = AutoencoderTask(SETTINGS, demo_clips, Ranks())
    trained(first, 0, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = AutoencoderTask(SETTINGS, demo_clips, Ranks())
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert trained(second, 3, 6) == expected[3:]


def test_float16_follows_float32_and_an_overflow_is_skipped(demo_clips: ShardSet) -> None:
    expected = trained(AutoencoderTask(SETTINGS, demo_clips, Ranks()), 0, 6)
    whole, second = (
        AutoencoderTask(replace(SETTINGS, precision="fp16"), demo_clips, Ranks()) for _ in range(2)
    )
    for task in (whole, second):
        task.scale.value = 2.0**10  # at which nothing overflows by itself
    found = trained(whole, 0, 6)
    assert found != expected and found == pytest.approx(expected, rel=0.02)
    weight = next(whole.model.parameters())
    before, handle = weight.detach().clone(), weight.register_hook(lambda gradient: gradient * torch.inf)
    assert whole.train_step(6)["loss_scale"] == 2.0**9 and torch.equal(weight, before)
    handle.remove()
    second.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert trained(second, 7, 9) == trained(whole, 7, 9)


def test_save_and_load_are_bit_identical(tmp_path: Path) -> None:
    model, video = busy(CausalVideoAutoencoder(CONFIG)), torch.randn(2, 3, 9, 16, 16)
    model.save(tmp_path)
    again = load_autoencoder(tmp_path)
    assert not again.training
    assert torch.equal(again.encode(video), model.encode(video))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors"):
        load_autoencoder(tmp_path)


def test_the_task_refuses_clips_of_a_wrong_length(demo_clips: ShardSet) -> None:
    with pytest.raises(InputError, match="9 frames, must be 6k"):
        AutoencoderTask(replace(SETTINGS, model=replace(CONFIG, time_patch=6)), demo_clips, Ranks())
