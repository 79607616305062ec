"""Every autoencoder behind one interface: no frame gets lost, and pieces give what the whole gives."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.video import autoencoder as own
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder, load_autoencoder
from qdm_pipeline.video.diffusers_autoencoder import diffusers_handle
from qdm_pipeline.video.latents import VideoAutoencoder

CONFIG = AutoencoderConfig(
    channels=3, latent_channels=4, time_patch=4, space_patch=8, width=16, encoder_blocks=2, decoder_blocks=2
)
SMALL: dict[str, Callable[[], Any]] = {
    "AutoencoderKL": lambda: diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, shift_factor=0.1,
    ),
    "AutoencoderKLWan": lambda: diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
    ),
    "AutoencoderKLCogVideoX": lambda: diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        sample_height=64, sample_width=64,
    ),
    "AutoencoderKLLTXVideo": lambda: diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    ),
    "AutoencoderKLHunyuanVideo": lambda: diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
    ),
}  # fmt: skip
SIDE = {"AutoencoderKL": 8, "AutoencoderKLLTXVideo": 32}  # pixels; LTX has 32 a position
STEPS = {"AutoencoderKL": 1, "AutoencoderKLCogVideoX": 8, "AutoencoderKLLTXVideo": 8}  # else 4


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each class, as diffusers saves it; and one of ours, with every branch switched on."""
    folder = tmp_path_factory.mktemp("autoencoders")
    torch.manual_seed(0)
    for name, make in SMALL.items():
        make().save_pretrained(folder / name)
    ours = CausalVideoAutoencoder(CONFIG)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours.save(folder / "ours")
    return folder


def load(saved: Path, name: str) -> VideoAutoencoder:
    return load_autoencoder(saved / name)


def film(name: str, frames: int, seed: int = 0, side: int | None = None) -> torch.Tensor:
    side = side or SIDE.get(name, 16)
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, side, side, generator=draw) * 2 - 1


@pytest.mark.parametrize("name", ["ours", *SMALL])
@torch.no_grad()
def test_saved_again_it_is_the_same(name: str, saved: Path, tmp_path: Path) -> None:
    model = load(saved, name)
    model.save(tmp_path)
    latents = torch.randn(1, model.channels, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_autoencoder(tmp_path).decode(latents), model.decode(latents))


@pytest.mark.parametrize("name", ["ours", *SMALL])
@torch.no_grad()
def test_no_number_of_frames_loses_one(name: str, saved: Path) -> None:
    model, fitting = load(saved, name), []
    for frames in range(1, 41):
        video = film(name, frames)
        try:
            shape = model.latent_shape(*video.shape[2:])
        except InputError as error:
            assert f"a clip has {frames} frames, must be {model.step}k + 1" in str(error)
            with pytest.raises(InputError):
                model.encode(video)
            continue
        fitting.append(frames)
        latents = model.encode(video)
        assert latents.shape[1:] == shape and model.decode(latents).shape == video.shape
    assert fitting == list(range(1, 41, STEPS.get(name, 4)))


@pytest.mark.parametrize("name", ["ours", *SMALL])
@torch.no_grad()
def test_padded_every_number_of_frames_comes_back(name: str, saved: Path) -> None:
    model, video = load(saved, name), film(name, 40)
    for frames in range(1, 41):
        part = video[:, :, :frames]
        latents = model.encode_padded(part)
        decoded = model.decode_trimmed(latents, frames)
        assert decoded.shape == part.shape
        if frames in (1, 7, 9):  # with nothing, two (or three) and nothing to add
            longer = torch.cat([part, *[part[:, :, -1:]] * (-(frames - 1) % model.step)], 2)
            assert torch.equal(latents, model.encode(longer))
            assert torch.equal(decoded, model.decode(latents)[:, :, :frames])
    with pytest.raises(InputError, match=f"latents of .* frames, {frames + 1} were padded to"):
        model.decode_trimmed(latents[:, :, :1], frames + 1)
    with pytest.raises(InputError, match="a clip has 0 frames"):
        model.encode_padded(video[:, :, :0])


@torch.no_grad()
def test_padding_changes_no_frame_before_it_where_nothing_looks_ahead(saved: Path) -> None:
    model, video = load(saved, "ours"), film("ours", 12)
    whole = model.decode(model.encode(video[:, :, :9]))
    padded = model.decode_trimmed(model.encode_padded(video), 12)
    assert (padded[:, :, :9] - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["ours", *SMALL])
def test_pictures_that_do_not_fit_are_refused(name: str, saved: Path) -> None:
    model = load(saved, name)
    with pytest.raises(InputError, match=f"both must be multiples of {model.space}"):
        model.encode(torch.zeros(1, 3, 1, model.space, model.space + 1))


@torch.no_grad()
def test_latents_are_normalised_as_the_configuration_says(saved: Path) -> None:
    def raw(name: str) -> torch.Tensor:
        model = load(saved, name).model  # type: ignore[operator, union-attr]
        video = film(name, 9)
        if name == "AutoencoderKL":
            return torch.stack([model.encode(f).latent_dist.mode() for f in video.unbind(2)], 2)
        return model.encode(video).latent_dist.mode()

    def ours(name: str) -> torch.Tensor:
        return load(saved, name).encode(film(name, 9))

    torch.testing.assert_close(
        ours("AutoencoderKL"), (raw("AutoencoderKL") - 0.1) * 0.18215, atol=1e-6, rtol=1e-4
    )
    scaled = {"AutoencoderKLCogVideoX": 1.15258426, "AutoencoderKLHunyuanVideo": 0.476986}
    for name, factor in scaled.items():
        torch.testing.assert_close(ours(name), raw(name) * factor, atol=1e-6, rtol=1e-5)
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 2.0, 0.5, 1.5])
    wan = (raw("AutoencoderKLWan") - mean.view(1, 4, 1, 1, 1)) / std.view(1, 4, 1, 1, 1)
    torch.testing.assert_close(ours("AutoencoderKLWan"), wan)


@torch.no_grad()
def test_statistics_in_buffers_are_read(tmp_path: Path) -> None:
    model = SMALL["AutoencoderKLLTXVideo"]()
    model.latents_mean.fill_(0.5)
    model.latents_std.fill_(4)
    model.save_pretrained(tmp_path)
    found = load_autoencoder(tmp_path)
    assert found.mean.tolist() == [0.5] * 4 and found.std.tolist() == [4] * 4


# Largest difference of a latent or pixel between a long clip's beginning and that beginning alone. Others
# than ours and Wan's normalise over time or decode looking ahead, so they have no such bound.
@pytest.mark.parametrize("name", ["ours", "AutoencoderKL", "AutoencoderKLWan"])
@torch.no_grad()
def test_a_causal_encoder_may_be_fed_in_chunks(name: str, saved: Path) -> None:
    model, video = load(saved, name), film(name, 25)
    whole = model.encode(video)
    part = model.encode(video[:, :, :9])
    assert (whole[:, :, : part.shape[2]] - part).abs().max() <= 1e-4
    decoded = model.decode(whole[:, :, : part.shape[2]])
    assert (model.decode(whole)[:, :, :9] - decoded).abs().max() <= 1e-4


@pytest.mark.parametrize("chunk", [1, 3, 100])
@torch.no_grad()
def test_chunks_of_time_are_exact(chunk: int, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = load(saved, "ours"), film("ours", 45)
    monkeypatch.setattr(own, "CHUNK", 1000)
    latents = model.encode(video)
    decoded = model.decode(latents)
    monkeypatch.setattr(own, "CHUNK", chunk)
    assert (model.encode(video) - latents).abs().max() <= 1e-5
    assert (model.decode(latents) - decoded).abs().max() <= 1e-5


@torch.no_grad()
def test_tiles_wider_than_the_view_are_exact(saved: Path) -> None:
    model, video = load(saved, "ours"), film("ours", 5, side=8 * 50)
    latents = model.encode(video)
    assert (model.encode_tiled(video, 16) - latents).abs().max() <= 1e-4
    assert (model.decode_tiled(latents, 16) - model.decode(latents)).abs().max() <= 1e-4
    assert torch.equal(model.encode_tiled(video, None), latents)


@torch.no_grad()
def test_tiles_of_other_encoders_hide_their_seams(saved: Path) -> None:
    """Attention sees the whole picture, so tiles differ; at their borders no more than elsewhere."""
    model = load(saved, "AutoencoderKLWan")
    video = film("AutoencoderKLWan", 5, side=12 * model.space)
    latents = model.encode(video)
    error = (model.encode_tiled(video, 8) - latents).abs().mean((0, 1, 2)) / latents.std()
    assert error.mean() < 0.1 and error[:, 3:9].mean() < 2 * error.mean()


def test_the_pipeline_takes_a_saved_one_by_its_bytes(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "AutoencoderKLWan", tmp_path / "wan")
    first = diffusers_handle(saved / "AutoencoderKLWan")
    assert diffusers_handle(tmp_path / "wan").digest == first.digest and first.kind == "autoencoder"
    assert load_autoencoder(first.path).channels == first.metadata["latent_channels"] == 4
    weights = next((tmp_path / "wan").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert diffusers_handle(tmp_path / "wan").digest != first.digest


def test_what_cannot_be_loaded_is_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(InputError, match="config.json: no such file"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLMochi"}')
    with pytest.raises(InputError, match="_class_name is 'AutoencoderKLMochi', allowed are AutoencoderKL, "):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text((saved / "AutoencoderKLWan/config.json").read_text())
    with pytest.raises(InputError, match=str(tmp_path)):
        load_autoencoder(tmp_path)
