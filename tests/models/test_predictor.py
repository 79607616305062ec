import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import (
    Condition,
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
    timestep_embedding,
)
from qdm_pipeline.models.quantizer import QuantizerSettings
from qdm_pipeline.models.transformer import rotary_angles, rotate


def make(patch=(1, 1, 1), classes=("a", "b"), vocabulary=(), width=32):
    quantizer = QuantizerSettings(
        kind="vq", codebook_size=32, codebook_dim=2, groups=4, decay=0.9, revival_threshold=0.1
    )
    size = PredictorSettings(
        attention="full",
        residual_dim=0,
        width=width,
        depth=2,
        heads=2,
        patch=patch,
        embedding_dim=24,
        quantizer=quantizer,
    )
    torch.manual_seed(0)
    config = PredictorConfig(
        size=size,
        latent_channels=4,
        classes=classes,
        vocabulary=vocabulary,
        caption_length=5 if vocabulary else 0,
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
