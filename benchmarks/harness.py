"""Measure ours, a peer and a floor fairly: in one process and one thread, taking turns."""

import json
import time
from collections.abc import Callable
from statistics import median

import torch

ROUNDS = 9

torch.set_num_threads(1)


def compare(
    case: str,
    unit: str,
    amount: int,
    ours: Callable[[], object],
    peer: Callable[[], object],
    floor: Callable[[], object],
    goal: float,
) -> None:
    """Print one JSON line: how much of ``amount`` each does a second, the median of turns that alternate.

    ``floor`` is what the hardware allows; ``ratio`` is ours over the peer and ``ok`` whether it reaches
    ``goal``; ``spread`` is the distance between the quartiles of ours over its median.
    """
    contestants = {"ours": ours, "peer": peer, "floor": floor}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(-1, ROUNDS):  # the first one warms up
        for name, act in contestants.items():
            started = time.perf_counter()
            act()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - started)
    rates = {name: amount / median(times) for name, times in seconds.items()}
    ordered = sorted(seconds["ours"])
    ratio = rates["ours"] / rates["peer"]
    row = {
        "case": case,
        "metric": unit,
        **{name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(ratio, 2),
        "spread": round((ordered[3 * ROUNDS // 4] - ordered[ROUNDS // 4]) / median(ordered), 3),
        "goal": goal,
        "ok": ratio >= goal,
    }
    print(json.dumps(row), flush=True)
