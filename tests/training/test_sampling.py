import pytest
import torch
from safetensors.torch import load_file

from qdm_pipeline.configuration import build
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.models.predictor import Condition
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import conditions, generate, sampling
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder

SETTINGS = dict(
    name="student", sampler="renoise", steps=None, times=None, low=0.0, high=1.0, eta=0.0, guidance=1.0,
    path="quantized", asked=None, size=None, count=10, batch=4, at_once=4, videos=3, columns=3, scale=1,
    fps=8, precision="fp32", seed=0,
    keep=(), weights="full", compile=False,
)  # fmt: skip


@pytest.fixture
def autoencoder(tmp_path):
    config = AutoencoderConfig(
        channels=3,
        latent_channels=3,
        time_patch=4,
        space_patch=8,
        width=8,
        encoder_blocks=1,
        decoder_blocks=1,
    )
    directory = tmp_path / "autoencoder"
    directory.mkdir()
    CausalVideoAutoencoder(config).save(directory)
    return Handle("autoencoder", directory, "a")


@pytest.fixture
def sample(make_distill, autoencoder, tmp_path):
    exported = tmp_path / "student"
    exported.mkdir()
    make_distill().export(exported)

    def run(ranks=None, **changes):
        inputs = {"model": Handle("student", exported, "b"), "autoencoder": autoencoder}
        made = Run.create(
            "samples", build(sampling.SamplingSettings, SETTINGS | changes), inputs, tmp_path / "runs"
        )
        sampling.sample(made, ranks or Ranks())
        result = made.result()
        return result, result and load_file(result.path / "samples.safetensors")

    run.student = exported
    return run


def test_token_ids_alone_give_the_latents_bit_for_bit(sample):
    handle, tensors = sample()
    model, _ = load_predictor(sample.student)
    assert tensors["codes"].dtype == torch.int32 and tensors["codes"].shape == (10, 2, 1, 2, 2)
    assert torch.equal(model.decode_codes(tensors["codes"]), tensors["latents"])
    assert handle.metadata["nfe"] == 2 and tensors["labels"].tolist() == [0, 1] * 5


def test_memory_is_that_of_a_step_whatever_the_number_of_steps(sample):
    few, more = (sample(sampler="ddim", steps=steps, path="continuous")[0].metadata for steps in (1, 3))
    guided = sample(sampler="ddim", steps=1, path="continuous", guidance=2.0)[0].metadata
    assert few["mebibytes_per_clip"] == more["mebibytes_per_clip"] > 2 * 3 * 2 * 2 * 4 / 2**20  # x_t and x0
    assert guided["mebibytes_per_clip"] > few["mebibytes_per_clip"]  # the first call's features wait


def test_files_to_look_at_are_written(sample):
    handle, _ = sample()
    assert sorted(path.name for path in (handle.path / "videos").iterdir()) == [
        f"{i:05d}.mp4" for i in range(3)
    ]
    assert all((handle.path / f"grid.{kind}").stat().st_size > 0 for kind in ("webp", "gif", "png"))


def test_without_pyav_only_the_mp4_files_are_missing(sample, monkeypatch, caplog):
    monkeypatch.setattr(sampling, "find_spec", lambda name: None)
    handle, _ = sample()
    assert "no MP4 files are written without PyAV" in caplog.text
    assert not (handle.path / "videos").exists() and (handle.path / "grid.webp").exists()


def test_ranks_share_the_batches_of_one(sample, monkeypatch):
    whole = sample()[1]
    shares = []
    first = Ranks(0, 2)
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    monkeypatch.setattr(Ranks, "sum", lambda self, tensor: tensor)
    monkeypatch.setattr(Ranks, "gather", lambda self, value: shares.append(value) or [value])
    sample(Ranks(1, 2), seed=0, fps=9)  # another request, the same samples
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value, *shares])
    together = sample(first, fps=10)[1]
    assert torch.equal(together["latents"], whole["latents"])


def test_guidance_of_features_is_guidance_of_x0(make_teacher):
    model = make_teacher().model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x, t, condition = (
            torch.randn(2, 3, 1, 2, 2),
            torch.tensor([0.3, 0.7]),
            Condition(torch.tensor([0, 1])),
        )
        guided = GuidedDenoiser(model, condition, 2.5, "continuous")(x, t)
        c, u = model(x, t, condition).x0, model(x, t, condition.unconditional()).x0
    assert torch.allclose(guided, u + 2.5 * (c - u), atol=1e-5)


def test_scale_one_skips_the_unconditional_pass(make_teacher):
    model, calls = make_teacher().model, []
    model.features = lambda *arguments, call=model.features: calls.append(1) or call(*arguments)
    for scale, expected in ((1.0, 1), (1.5, 2)):
        calls.clear()
        GuidedDenoiser(model, Condition(torch.tensor([0])), scale, "continuous")(
            torch.randn(1, 3, 1, 2, 2), torch.tensor([0.5])
        )
        assert len(calls) == expected


def test_what_a_model_does_not_know_is_named(sample, make_teacher, latents):
    with pytest.raises(InputError, match="unknown classes.*'seven'.*even"):
        sample(asked=("even", "seven"))
    config = make_teacher(condition="caption").config
    assert config.vocabulary == ("a", "dot", "red") and config.caption_length == 3
    assert conditions.from_captions(["Red dot!"], config).tolist() == [[2, 1, -1]]
    with pytest.raises(InputError, match="blue"):
        conditions.from_captions(["a blue dot"], config)
    with pytest.raises(InputError, match="4 words"):
        conditions.from_captions(["a red red dot"], config)


@pytest.mark.parametrize("what", ["sampler", "path"])
def test_null_is_what_a_student_was_distilled_for_and_a_teacher_has_none(
    sample, make_teacher, tmp_path, what
):
    (_, named), (_, own) = sample(), sample(**{what: None})
    assert torch.equal(named["latents"], own["latents"])
    settings = build(sampling.SamplingSettings, SETTINGS | {what: None})
    choose = {"sampler": generate.chosen_sampler, "path": generate.chosen_path}[what]
    with pytest.raises(InputError, match=f"student: {what} is null, but this model has none of its own"):
        choose(settings, {})


def test_trajectories_pass_the_kept_times_whatever_the_steps(sample):
    _, kept = sample(sampler="ddim", steps=5, keep=(1.0, 0.7))
    _, shorter = sample(sampler="ddim", steps=2, keep=(1.0, 0.7))
    shape = kept["latents"].shape
    assert kept["trajectory"].shape == (shape[0], 2, *shape[1:]) and "trajectory" not in sample()[1]
    assert torch.equal(
        kept["trajectory"][:, 0], shorter["trajectory"][:, 0]
    )  # both begin with the same noise
    assert not torch.equal(kept["trajectory"][:, 1], shorter["trajectory"][:, 1])
    assert generate.times_through((1.0, 0.7), 5, 0.0) == pytest.approx(
        (1.0, 0.9, 0.8, 0.7, 0.7 * 2 / 3, 0.7 / 3)
    )
    even = Schedule("flow").spaced(16)
    assert generate.times_through((1.0, 0.75, 0.5, 0.25), 16, 0.0) == pytest.approx(even)


def test_a_teacher_has_no_step_list_of_its_own():
    settings = build(sampling.SamplingSettings, SETTINGS)
    with pytest.raises(InputError, match="steps is null"):
        generate.sampling_times(settings, Schedule("flow"), {})


def test_a_student_is_called_more_often_than_it_learned(sample):
    _, own = sample()
    handle, same = sample(times=(1.0, 0.5))  # its own, written out
    assert torch.equal(same["latents"], own["latents"])
    more, drawn = sample(times=(1.0, 0.5, 0.5))
    assert (handle.metadata["nfe"], more.metadata["nfe"], more.metadata["steps"]) == (2, 3, 3)
    assert not torch.equal(drawn["latents"], own["latents"])
    with pytest.raises(
        InputError, match=r"times: found \[1.0, 0.5, 0.5\], one of them twice: only .* renoise"
    ):
        sample(times=(1.0, 0.5, 0.5), sampler="ddim")
    with pytest.raises(
        InputError, match=r"times: found \[0.75\], where this student did not learn .*\[1.0, 0.5\]"
    ):
        sample(times=(1.0, 0.75, 0.5))


@pytest.mark.parametrize("times", [(), (0.5, 1.0), (1.5,), (1.0, 0.0)])
def test_times_that_do_not_fall_are_named(times):
    with pytest.raises(ValueError, match="times: .*must fall"):
        build(sampling.SamplingSettings, SETTINGS | {"times": times})
    with pytest.raises(ValueError, match="in place of steps"):
        build(sampling.SamplingSettings, SETTINGS | {"times": (1.0,), "steps": 1})


@pytest.mark.parametrize(
    "wrong", [{"eta": 0.5}, {"videos": 11}, {"low": 1.0}, {"steps": 0}, {"keep": (1.0, 0.5)}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(sampling.SamplingSettings, SETTINGS | wrong)
