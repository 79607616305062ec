"""Measure ours, a peer and a floor fairly: in one process and one thread, taking turns."""

import ctypes
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

ROUNDS = 9

torch.set_num_threads(1)

Act = Callable[[], object]


def take_turns(contestants: Mapping[str, Act], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of every contestant in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(-1, rounds):
        for name, act in contestants.items():
            started = time.perf_counter()
            act()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float]) -> float:
    """Distance between the quartiles over the median."""
    ordered = sorted(values)
    return (ordered[3 * len(values) // 4] - ordered[len(values) // 4]) / median(values)


def report(case: str, metric: str, values: dict[str, float], ratio: float, noise: float, goal: str) -> None:
    """Print one JSON line; ``goal`` is like "<= 1.25" or ">= 13" and says what ``ratio`` has to be."""
    sign, bound = goal.split()
    row = {
        "case": case,
        "metric": metric,
        **{name: float(f"{value:.4g}") for name, value in values.items()},
        "ratio": float(f"{ratio:.3g}"),
        "spread": round(noise, 3),
        "goal": goal,
        "ok": ratio <= float(bound) if sign == "<=" else ratio >= float(bound),
    }
    print(json.dumps(row), flush=True)


def peak_memory(act: Act) -> float:
    """MiB by which ``act`` raises the peak of resident memory, in a process of its own (Linux, glibc)."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 17)  # M_MMAP_THRESHOLD, else it adapts, and what is freed stays resident
        libc.malloc_trim(0)  # what earlier rounds freed must not be at hand
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status("VmRSS")
        act()
        os.write(write, str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        grown = stream.read()
    os.waitpid(child, 0)
    return int(grown) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def compare(case: str, unit: str, amount: int, ours: Act, peer: Act, floor: Act, goal: str) -> None:
    """Print how much of ``amount`` each does a second; ``ratio`` is ours over the peer.

    ``floor`` is what the hardware allows.
    """
    seconds = take_turns({"ours": ours, "peer": peer, "floor": floor})
    rates = {name: amount / median(times) for name, times in seconds.items()}
    report(case, unit, rates, rates["ours"] / rates["peer"], spread(seconds["ours"]), goal)
