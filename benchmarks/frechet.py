"""Fréchet distance of two sets of features; peer: covariances and scipy's `sqrtm`; floor: one product.

Ours is the quicker of two routes: the features themselves where they are fewer than their numbers, moments
that stream where they are more. The error is against singular values of QR factors in float64 (`scipy`).
"""

import sys
from statistics import median

import numpy as np
import torch
from scipy.linalg import qr, sqrtm, svdvals

from benchmarks.harness import peak_memory, report, spread, take_turns
from qdm_pipeline.evaluation.frechet import Gaussian, Moments, distance, frechet_distance
from qdm_pipeline.randomness import generator

TO_PEER = {(512, 1280): 20, (2048, 1280): 3, (1280, 512): 3, (1280, 2048): 3}  # (samples, numbers)
ROUNDS = 3


def case(count: int, dimension: int) -> None:
    """``count`` samples of ``dimension`` numbers on each side."""
    draw = generator(0, count, dimension, "benchmark")
    x = torch.randn(count, dimension, generator=draw, dtype=torch.float64)
    y = 1.1 * torch.randn(count, dimension, generator=draw, dtype=torch.float64) + 0.1

    def of_features() -> float:
        return distance(Gaussian.of_features(x), Gaussian.of_features(y))

    def of_moments() -> float:
        a, b = (Moments.empty(dimension).add(features) for features in (x, y))
        return frechet_distance(a, b)

    def peer() -> float:
        a, b = (np.cov(features.numpy(), rowvar=False) for features in (x, y))
        root = sqrtm(a @ b).real
        shift = float((x.mean(0) - y.mean(0)).square().sum())
        return shift + float(np.trace(a) + np.trace(b) - 2 * np.trace(root))

    acts = {"features": of_features, "moments": of_moments, "peer": peer, "floor": lambda: x.T @ y}
    ours = "features" if count < dimension else "moments"
    seconds = take_turns(acts, ROUNDS)
    medians = {name: median(times) for name, times in seconds.items()}
    name, ratio = f"{count} samples, {dimension} numbers", medians["peer"] / medians[ours]
    report(name, "seconds", medians, ratio, spread(seconds[ours]), f">= {TO_PEER[count, dimension]}")
    truth = reference(x.numpy(), y.numpy())
    errors = {each: abs(acts[each]() / truth - 1) for each in ("features", "moments", "peer")}  # type: ignore[operator]
    report(name, "relative error", errors, errors[ours], 0.0, "<= 1e-7")


def reference(x: np.ndarray, y: np.ndarray) -> float:
    a, b = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (x, y))
    a, b = (qr(part, mode="r")[0][: min(part.shape)] for part in (a, b))
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    return float(shift + np.square(a).sum() + np.square(b).sum() - 2 * svdvals(a @ b.T).sum())


def streaming_memory() -> None:
    """Moments of ten times as many samples take the same memory."""
    grown = {}
    for name, batches in (("ours", 100), ("fewer", 10)):

        def stream(batches: int = batches) -> None:
            moments = Moments.empty(512)
            for step in range(batches):
                moments = moments.add(torch.randn(100, 512, generator=generator(0, step, 0, "benchmark")))

        grown[name] = peak_memory(stream)
    ratio = grown["ours"] / grown["fewer"]
    report("10,000 samples against 1,000, 512 numbers", "extra MiB", grown, ratio, 0.0, "<= 1.5")


if __name__ == "__main__":
    for count, dimension in [tuple(map(int, sys.argv[1:]))] if sys.argv[1:] else TO_PEER:
        case(count, dimension)
    streaming_memory()
