"""Token states from the shards to teacher, student and samples, without any text encoder installed."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from qdm_pipeline.configuration import build, plain
from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.models.predictor import TextConfig
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import conditions, generate, sampling
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.trajectories import Trajectories
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder
from qdm_pipeline.video.shards import write_shards

LENGTH, WIDTH = 4, 6
TEXT = TextConfig(encoder="tiny", digest="ab", length=LENGTH, width=WIDTH, empty_tokens=1)
EMPTY = [[1.0, -1.0, 2.0, 0.0, 0.5, 0.25]]


def encoded(captions):
    """States that depend on the caption alone, and their count."""
    states, tokens = torch.zeros(len(captions), LENGTH, WIDTH), torch.zeros(len(captions), dtype=torch.int32)
    for place, caption in enumerate(captions):
        words = [] if caption is None else caption.split()
        tokens[place] = len(words)
        for token, word in enumerate(words):
            states[place, token] = torch.randn(
                WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, word)))
            )
    return states, tokens


@pytest.fixture
def latents(tmp_path):
    captions = ["a red dot", None, "a dot"]
    draw, samples = torch.Generator().manual_seed(0), []
    for i in range(24):
        states, tokens = encoded([captions[i % 3]])
        latent = torch.randn(3, 1, 2, 2, generator=draw)
        columns = {"id": str(i), "label": None, "caption": captions[i % 3], "split": "train"}
        samples.append(({"latent": latent, "text": states[0].half(), "text_tokens": tokens[0]}, columns))
    return write_shards(tmp_path / "latents", samples, {"text": plain(TEXT), "empty_text": EMPTY}, 10)


@pytest.fixture
def make_teacher(make_teacher):
    return lambda ranks=None, **changes: make_teacher(ranks, **({"condition": "text"} | changes))


def test_a_batch_reads_its_own_states(latents, make_teacher):
    task = make_teacher()
    found = task.condition.rows(torch.tensor([5, 0, 1]))
    states, tokens = encoded(["a dot", "a red dot", None])
    assert found.tokens.tolist() == tokens.tolist() == [2, 3, 0]
    torch.testing.assert_close(found.text.float(), states, atol=1e-3, rtol=1e-3)
    assert task.model.empty_text.tolist() == EMPTY and task.condition.known.label is None


@pytest.mark.parametrize("kind", ["teacher", "distill"])
def test_a_resume_with_states_is_exact(kind, request):
    def make():
        return request.getfixturevalue(f"make_{kind}")(batch=4, micro_batch=2)

    whole, first, second = make(), make(), make()
    for step in range(3):
        whole.train_step(step)
    first.train_step(0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(1, 3):
        second.train_step(step)
    model, again = (task.model if kind == "teacher" else task.dmd.student for task in (whole, second))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.empty_text.tolist() == EMPTY


def test_latents_without_states_or_with_those_of_another_encoder_are_refused(make_teacher, latents):
    config = make_teacher().config
    latents.manifest["text"]["digest"] = "cd"
    with pytest.raises(InputError, match="text: found .*'digest': 'cd'.*the model has .*'digest': 'ab'"):
        conditions.of_clips(latents, latents.rows("train"), config)
    del latents.manifest["text"]
    with pytest.raises(InputError, match="the latents have no token states; set encode.text"):
        make_teacher()


def test_samples_are_asked_for_by_captions_and_keep_what_they_were_asked(make_distill, tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr(
        generate, "same_text_encoder", lambda config, device: devices.append(config) or encoded
    )
    autoencoder = AutoencoderConfig(channels=3, latent_channels=3, time_patch=4, space_patch=8, width=8,
                                    encoder_blocks=1, decoder_blocks=1)  # fmt: skip
    for name in ("autoencoder", "student"):
        (tmp_path / name).mkdir()
    CausalVideoAutoencoder(autoencoder).save(tmp_path / "autoencoder")
    task = make_distill(student_optimizer=dict(lr=0.1, muon_lr=None, betas=(0.9, 0.99), weight_decay=0.0,
                                               clip=1.0, warmup=0, decay=False))  # fmt: skip
    for step in range(2):
        task.train_step(step)  # at the start text says nothing yet
    task.export(tmp_path / "student")

    def samples(**changes):
        settings = build(sampling.SamplingSettings, dict(
            name="student", sampler="ddim", steps=2, times=None, low=0.0, high=1.0, eta=0.0, guidance=1.0,
            scale=1, path="continuous", asked=("a red dot", "dot"), size=None, count=4, batch=3, videos=1,
            columns=1, fps=8,
            keep=(1.0,), precision="fp32", seed=0, at_once=3, weights="full", compile=False,
        ) | changes)  # fmt: skip
        handles = {name: Handle(name, tmp_path / name, "b") for name in ("autoencoder", "student")}
        inputs = {"model": handles["student"], "autoencoder": handles["autoencoder"]}
        run = Run.create("samples", settings, inputs, tmp_path / "runs")
        sampling.sample(run, Ranks())
        return run.directory, load_file(run.directory / "samples.safetensors")

    directory, found = samples()
    assert load_predictor(tmp_path / "student")[0].config.text == devices[0] == TEXT
    assert found["asked"].tolist() == [0, 1, 0, 1] and found["text_tokens"].tolist() == [3, 1]
    _, other = samples(asked=("a red dot", "red"))
    same = (found["latents"] == other["latents"]).flatten(1).all(1).tolist()
    assert same == [True, False, True, False]  # only those asked for something else differ
    assert not torch.equal(samples(guidance=2.0)[1]["latents"], found["latents"])
    trajectories = Trajectories(directory, [1.0], "fresh", task.schedule)
    _, _, condition = trajectories.at(torch.tensor([3, 2]), 0, torch.device("cpu"))
    assert condition.tokens.tolist() == [1, 3] and torch.equal(
        condition.text, encoded(["dot", "a red dot"])[0]
    )
    with pytest.raises(InputError, match="this model wants captions"):
        samples(asked=None)
