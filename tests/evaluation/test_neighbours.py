"""Precision, recall, density, coverage and nearest clips against loops and sets drawn by hand."""

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation import neighbours
from qdm_pipeline.evaluation.neighbours import Manifolds, manifolds, nearest


def by_loops(real: torch.Tensor, samples: torch.Tensor, k: int) -> Manifolds:
    def reach(points: torch.Tensor) -> list[float]:
        return [sorted(float((p - q).norm()) for q in points)[k] for p in points]

    of_real, of_samples = reach(real), reach(samples)
    in_real = [[float((r - s).norm()) <= of_real[i] for i, r in enumerate(real)] for s in samples]
    in_samples = [[float((r - s).norm()) <= of_samples[j] for j, s in enumerate(samples)] for r in real]
    return Manifolds(
        precision=sum(any(row) for row in in_real) / len(samples),
        recall=sum(any(row) for row in in_samples) / len(real),
        density=sum(sum(row) for row in in_real) / k / len(samples),
        coverage=sum(any(row[i] for row in in_real) for i in range(len(real))) / len(real),
    )


@pytest.mark.parametrize("chunk", [7, 1024])
def test_agrees_with_loops(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(40, 3, generator=draw, dtype=torch.float64)
    samples = torch.randn(30, 3, generator=draw, dtype=torch.float64) + 0.7
    found, expected = manifolds(real, samples, 3), by_loops(real, samples, 3)
    assert vars(found) == pytest.approx(vars(expected))


def test_dropped_modes_cost_recall_and_bad_samples_cost_precision() -> None:
    draw = torch.Generator().manual_seed(1)
    half = torch.randn(100, 4, generator=draw) + 50
    real = torch.cat([torch.randn(100, 4, generator=draw), half])
    one_mode = manifolds(real, torch.randn(200, 4, generator=draw), 5)
    assert one_mode.precision > 0.8 and one_mode.recall < 0.55 and one_mode.coverage < 0.55
    stray = manifolds(real, torch.cat([half, half + 100]), 5)
    assert stray.precision == 0.5
    with pytest.raises(InputError, match="5 neighbours need more than 5 samples, found 200 and 5"):
        manifolds(real, half[:5], 5)


def test_the_nearest_clip_is_found_at_its_distance() -> None:
    bank = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    distance, position = nearest(torch.tensor([[3.0, 3.0], [9.0, 0.0]]), bank)
    assert distance.tolist() == [1, 1] and position.tolist() == [1, 2]
