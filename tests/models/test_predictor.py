import sys

import pytest
import torch

from qdm_pipeline.configuration import build, plain
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import (
    Condition,
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
    TextConfig,
    timestep_embedding,
)
from qdm_pipeline.models.quantizer import QuantizerSettings
from qdm_pipeline.models.transformer import rotary_angles, rotate


def make(
    patch=(1, 1, 1), classes=("a", "b"), vocabulary=(), width=32, attention="full", residual_dim=0, kind="vq",
    text=None, absolute_positions=False,
):  # fmt: skip
    size = {"fsq": 25, "lfq": 4, "bsq": 4}.get(kind, 32)
    quantizer = QuantizerSettings(
        kind=kind, codebook_size=size, codebook_dim=2, groups=4, decay=0.9, revival_threshold=0.1
    )
    size = PredictorSettings(
        attention=attention,
        residual_dim=residual_dim,
        width=width,
        depth=2,
        heads=2,
        patch=patch,
        embedding_dim=24,
        quantizer=quantizer,
        absolute_positions=absolute_positions,
    )
    torch.manual_seed(0)
    config = PredictorConfig(
        size=size,
        latent_channels=4,
        classes=classes,
        vocabulary=vocabulary,
        caption_length=5 if vocabulary else 0,
        text=text,
    )
    model = QuantizedDiffusionPredictor(config)
    with torch.no_grad():  # adaLN-zero blocks ignore everything at first; wake them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (3, 2, 1)])
@pytest.mark.parametrize("path", ["continuous", "quantized"])
def test_prediction_has_the_shape_of_its_input(patch, path):
    x = torch.randn(2, 4, 3, 4, 6)
    prediction = make(patch)(x, torch.tensor([0.1, 0.9]), Condition(torch.tensor([0, 1])), path)
    assert prediction.x0.shape == x.shape
    assert (prediction.codes is None) == (path == "continuous")
    if prediction.codes is not None:
        assert prediction.codes.shape == (2, 4, 3, 4, 6)


def test_single_images_are_clips_of_one_frame():
    assert make()(torch.randn(1, 4, 1, 2, 2), torch.tensor([0.5]), Condition()).x0.shape == (1, 4, 1, 2, 2)


@pytest.mark.parametrize("shape", [(1, 4, 3, 5, 4), (1, 3, 3, 4, 4)])
def test_a_latent_that_does_not_fit_is_one_clear_error(shape):
    with pytest.raises(InputError, match="patch"):
        make((1, 2, 2))(torch.randn(shape), torch.tensor([0.5]), Condition())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_codes_alone_reproduce_the_quantized_prediction_bit_for_bit(batch):
    model, x = make(), torch.randn(6, 4, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        prediction = model(x, torch.rand(6), Condition(torch.zeros(6, dtype=torch.int64)), "quantized")
    decoded = torch.cat([model.decode_codes(codes) for codes in prediction.codes.split(batch)])
    assert torch.equal(decoded, prediction.x0)


def test_with_and_without_gradient_the_quantized_prediction_is_the_same():
    model, x, t = make(), torch.randn(2, 4, 3, 4, 4), torch.rand(2)
    trained = model(x, t, Condition(), "quantized")
    with torch.no_grad():
        assert torch.allclose(model(x, t, Condition(), "quantized").x0, trained.x0, atol=1e-6)


def test_class_time_and_caption_each_matter():
    x, t = torch.randn(1, 4, 1, 2, 2), torch.tensor([0.5])
    model = make()
    answers = [model(x, t, Condition(torch.tensor([label]))).x0 for label in (-1, 0, 1)]
    answers.append(model(x, t / 2, Condition(torch.tensor([0]))).x0)
    model = make(classes=(), vocabulary=("red", "dot"))
    answers += [
        model(x, t, Condition(words=torch.tensor([words]))).x0
        for words in ([0, 1], [1, 0], [0, -1], [-1, -1])
    ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(answers) for b in answers[:i])


def test_padding_words_are_not_looked_at():
    model = make(classes=(), vocabulary=("red", "dot"))
    x, t = torch.randn(1, 4, 1, 2, 2), torch.tensor([0.5])
    short = model(x, t, Condition(words=torch.tensor([[0, 1]]))).x0
    assert torch.allclose(short, model(x, t, Condition(words=torch.tensor([[0, 1, -1, -1]]))).x0, atol=1e-6)


TEXT = TextConfig(encoder="tiny", digest="ab", length=5, width=6, empty_tokens=2)


def test_nothing_asked_for_is_the_empty_caption():
    model = make(classes=(), text=TEXT)
    model.empty_text.copy_(torch.randn(2, 6))
    x, t = torch.randn(2, 4, 1, 2, 2), torch.tensor([0.5, 0.5])
    states = torch.randn(2, 5, 6)
    states[1, :2] = model.empty_text
    asked = Condition(text=states, tokens=torch.tensor([3, 2]))
    answer, free = model(x, t, asked).x0, model(x, t, asked.unconditional()).x0
    torch.testing.assert_close(answer[1], free[1])  # the empty caption, said or not said
    torch.testing.assert_close(free, model(x, t, Condition()).x0)
    assert not torch.allclose(answer[0], free[0])
    dropped = asked.dropped(torch.tensor([True, False]))
    torch.testing.assert_close(model(x, t, dropped).x0, torch.stack([free[0], answer[1]]))


def test_states_behind_the_tokens_are_not_looked_at_and_their_scale_does_not_count():
    model = make(classes=(), text=TEXT)
    x, t, states = torch.randn(1, 4, 1, 2, 2), torch.tensor([0.5]), torch.randn(1, 5, 6)
    answer = model(x, t, Condition(text=states, tokens=torch.tensor([3]))).x0
    torch.testing.assert_close(answer, model(x, t, Condition(text=9 * states, tokens=torch.tensor([3]))).x0)
    states[:, 3:] = 7
    torch.testing.assert_close(answer, model(x, t, Condition(text=states, tokens=torch.tensor([3]))).x0)
    states[:, 2] = 7
    assert not torch.allclose(answer, model(x, t, Condition(text=states, tokens=torch.tensor([3]))).x0)


def test_conditions_drop_and_select():
    condition = Condition(torch.tensor([3, 4]), torch.tensor([[1, 2], [5, -1]]))
    dropped = condition.dropped(torch.tensor([True, False]))
    assert dropped.label.tolist() == [-1, 4] and dropped.words.tolist() == [[-1, -1], [5, -1]]
    assert condition.unconditional().label.tolist() == [-1, -1]
    assert condition.rows(torch.tensor([1])).words.tolist() == [[5, -1]]


def test_rotation_depends_on_relative_position_only():
    angles = rotary_angles((4, 4, 4), 12, torch.device("cpu"))
    q, k = torch.randn(1, 1, 1, 12), torch.randn(1, 1, 1, 12)

    def score(i, j):
        turned = (
            rotate(part, angles[n : n + 1].cos(), angles[n : n + 1].sin()) for part, n in ((q, i), (k, j))
        )
        return float((next(turned) * next(turned)).sum())

    step = 16 + 4 + 1  # one further on every axis
    assert score(0, step) == pytest.approx(score(step, 2 * step), abs=1e-5)
    assert score(0, step) != pytest.approx(score(0, 2 * step), abs=1e-3)


def test_timestep_embedding_tells_times_apart():
    embedded = timestep_embedding(torch.linspace(0, 1, 50))
    assert torch.cdist(embedded, embedded).add(torch.eye(50) * 9).min() > 0.1


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="heads"):
        make(width=30)


@pytest.mark.parametrize("kind", ["fsq", "lfq", "bsq"])
def test_other_quantizers_stand_behind_the_same_interface(kind):
    model, x = make(kind=kind).train(), torch.randn(3, 4, 3, 4, 4)
    features = model.features(x, torch.rand(3), Condition())
    prediction = model.read(features, "quantized", collect=True)
    (prediction.x0.square().mean() + prediction.commitment).backward()
    assert model.patch_in.weight.grad.abs().sum() > 0
    size = model.quantizer.codebook.shape[1]
    assert 0 <= prediction.codes.min() and prediction.codes.max() < size
    assert torch.allclose(model.decode_codes(prediction.codes), prediction.x0, atol=1e-5)
    model.quantizer.commit(0, 0)
    assert model.quantizer.take_usage().sum() == 4 * 3 * 48
    codebook = model.quantizer.codebook[0]
    assert len(codebook.unique(dim=0)) == size


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_a_wrong_number_of_codes_is_named(kind):
    with pytest.raises(ValueError, match="codebook_size: found 24"):
        QuantizerSettings(
            kind=kind, codebook_size=24, codebook_dim=2, groups=1, decay=0.0, revival_threshold=0.0
        )


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(InputError, match="ablations"):
        make(kind="fsq")


def test_factorised_attention_sees_frame_and_place_in_turn():
    model, x, t = make(attention="factorised"), torch.randn(1, 4, 3, 4, 4), torch.tensor([0.5])
    first = model.blocks[0]
    inputs = {}
    first.register_forward_hook(lambda module, args, out: inputs.update(out=out))
    model(x, t, Condition())
    before = inputs["out"].detach().clone()
    changed = x.clone()
    changed[0, :, 1, 2, 3] += 1
    model(changed, t, Condition())
    seen = (inputs["out"] - before).abs().sum(-1).view(3, 4, 4) > 1e-6
    assert seen[1].all() and not seen[0].any() and not seen[2].any()  # a block within frames ...
    answer = [model(part, t, Condition()).x0 for part in (x, changed)]
    assert ((answer[0] - answer[1]).abs().sum(1)[0] > 1e-6).all()  # ... and one over time reach everything


def test_reach_within_a_frame_is_full_attention_to_a_clip_of_one_frame():
    full, factorised = make(), make(attention="factorised")
    factorised.load_state_dict(full.state_dict())
    x, t = torch.randn(2, 4, 1, 4, 4), torch.rand(2)
    with torch.no_grad():
        for block in (full.blocks[1], factorised.blocks[1]):  # over one frame, attention is its own value
            block.attention_out.weight.zero_()
    assert torch.allclose(full(x, t, Condition()).x0, factorised(x, t, Condition()).x0, atol=1e-6)


def test_recomputation_gives_the_same_gradients_to_the_bit():
    gradients = []
    for what in ("nothing", "pointwise", "blocks"):
        model = make()
        model.recompute(what)
        x = torch.linspace(-1, 1, 2 * 4 * 48).view(2, 4, 3, 4, 4)
        model(
            x, torch.tensor([0.2, 0.7]), Condition(), "quantized", collect=True
        ).x0.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        assert model.quantizer.collected[..., -1].sum() == 4 * 2 * 48
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_a_residual_stands_beside_the_codes():
    model, x, t = make(residual_dim=3), torch.randn(2, 4, 3, 4, 4), torch.rand(2)
    with torch.no_grad():
        prediction = model(x, t, Condition(), "quantized")
    assert prediction.residual.shape == (2, 3, 3, 4, 4)
    assert torch.equal(model.decode_codes(prediction.codes, prediction.residual), prediction.x0)
    assert not torch.allclose(model.decode_codes(prediction.codes), prediction.x0)
    assert torch.allclose(model(x, t, Condition(), "quantized").x0, prediction.x0, atol=1e-5)
    assert make()(x, t, Condition(), "quantized").residual is None


def test_clips_may_be_longer_than_any_before():
    # Of equal frames, every one attends to equal values: its answer is the same in a clip of any length.
    model, frame = make(attention="factorised"), torch.randn(1, 4, 1, 4, 4)
    short, long = (
        model(frame.expand(-1, -1, length, -1, -1), torch.tensor([0.5]), Condition()).x0 for length in (9, 33)
    )
    assert long.shape[2] == 33 and long.isfinite().all()
    assert torch.allclose(short[:, :, 4], long[:, :, 16], atol=1e-5)
    device = torch.device("cpu")
    few, many = rotary_angles((9, 4, 4), 16, device), rotary_angles((33, 4, 4), 16, device)
    assert torch.equal(many[: len(few)], few) and len(many.unique(dim=0)) == len(many)


@pytest.mark.parametrize("attention", ["full", "factorised"])
def test_only_absolute_positions_tell_the_places_of_equal_tokens_apart(attention):
    x, condition = torch.ones(1, 4, 3, 4, 4), Condition(torch.tensor([1]))

    def spread(**options):
        return make(attention=attention, **options)(x, torch.ones(1), condition).x0.flatten(2).std(2).max()

    assert spread() < 1e-5
    assert spread(absolute_positions=True) > 1e-2


def test_a_model_of_before_absolute_positions_is_built_without():
    stored = plain(make().config)
    del stored["size"]["absolute_positions"]
    assert QuantizedDiffusionPredictor(build(PredictorConfig, stored)).position_in is None
