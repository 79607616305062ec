"""Counted parameters and flops against those of a Transformer written out by hand."""

import pytest
import torch

from qdm_pipeline.models.cost import build_on_meta, cost
from qdm_pipeline.models.predictor import (
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
    TextConfig,
)
from qdm_pipeline.models.quantizer import QuantizerSettings

WIDTH, DEPTH, EMBEDDING, GROUPS, CODES, DIM = 64, 3, 32, 2, 128, 4


def config(attention="full", patch=(1, 2, 2), kind="vq", codes=CODES, vocabulary=(), text=None):
    quantizer = QuantizerSettings(
        kind=kind, codebook_size=codes, codebook_dim=DIM, groups=GROUPS, decay=0.9, revival_threshold=0.1
    )
    size = PredictorSettings(
        width=WIDTH, depth=DEPTH, heads=2, patch=patch, attention=attention, embedding_dim=EMBEDDING,
        residual_dim=0, quantizer=quantizer,
    )  # fmt: skip
    return PredictorConfig(
        size=size,
        latent_channels=8,
        classes=("a", "b"),
        vocabulary=vocabulary,
        caption_length=4 if vocabulary else 0,
        text=text,
    )


@pytest.mark.parametrize(("attention", "seen"), [("full", 3 * [48]), ("factorised", [16, 3, 16])])
def test_flops_are_those_of_the_products(attention, seen):
    n, voxels = 3 * 4 * 4, 3 * 8 * 8
    blocks = sum(2 * n * 12 * WIDTH**2 + 2 * 2 * n * keys * WIDTH for keys in seen)
    ends = 2 * n * WIDTH * (8 * 4 + EMBEDDING * 4)
    signal = 2 * WIDTH * (256 + WIDTH + 6 * WIDTH + 2 * WIDTH)  # once a sample
    search = 2 * voxels * GROUPS * (EMBEDDING * DIM + CODES * (DIM + 1) + DIM * EMBEDDING)
    search += 2 * voxels * EMBEDDING * 8  # final_proj
    assert cost(config(attention), (8, 3, 8, 8)).flops == blocks + ends + signal + search


def test_meta_model_has_the_parameters_of_the_real_one_and_no_memory():
    meta = build_on_meta(config())
    assert all(tensor.device.type == "meta" for tensor in [*meta.parameters(), *meta.buffers()])
    real = sum(p.numel() for p in QuantizedDiffusionPredictor(config()).parameters())
    measured = cost(config(), (8, 3, 8, 8))
    assert measured.parameters == real and measured.tokens == 48


def test_flops_grow_with_the_clip_and_not_with_its_modulation():
    one, two = (cost(config(), (8, frames, 8, 8)).flops for frames in (1, 2))
    signal = 2 * WIDTH * (256 + WIDTH + 8 * WIDTH)
    attention = DEPTH * 2 * 2 * WIDTH * (32**2 - 2 * 16**2)
    assert two - signal - attention == 2 * (one - signal) and torch.get_default_device().type == "cpu"


@pytest.mark.parametrize(("kind", "codes"), [("fsq", 81), ("lfq", 16), ("bsq", 16)])
def test_other_quantizers_have_a_cost_without_memory_too(kind, codes):
    other = config(kind=kind, codes=codes)
    assert all(tensor.device.type == "meta" for tensor in build_on_meta(other).buffers())
    assert cost(other, (8, 3, 8, 8)).flops < cost(config(), (8, 3, 8, 8)).flops  # they do not search


def test_captions_cost_their_cross_attention():
    assert cost(config(vocabulary=("a",)), (8, 3, 8, 8)).flops > cost(config(), (8, 3, 8, 8)).flops


def test_flops_of_token_states_are_those_of_cross_attention():
    text = TextConfig(encoder="tiny", digest="ab", length=7, width=5, empty_tokens=2)
    n, added = 3 * 4 * 4, cost(config(text=text), (8, 3, 8, 8)).flops - cost(config(), (8, 3, 8, 8)).flops
    queries, keys = 2 * n * 2 * WIDTH**2, 2 * 7 * 2 * WIDTH**2  # of tokens in and out, of keys and values
    assert added == DEPTH * (queries + keys + 2 * 2 * n * 7 * WIDTH) + 2 * 7 * 5 * WIDTH
