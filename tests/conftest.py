"""For all tests: one thread, and how many rounds a fault is tried.

One thread: two OpenMP threads on a busy two-core machine are many times slower than one.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KEDRO_DISABLE_TELEMETRY"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

FAULT_ROUNDS = {"few": 2, "full": None}[os.environ.get("FAULT_ROUNDS", "few")]  # at most; None: as marked


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test marked ``rounds(total)`` a ``number`` from 0; ``make faults`` runs more than the first."""
    marker = metafunc.definition.get_closest_marker("rounds")
    if marker is not None:
        later = range(1, min(marker.args[0], FAULT_ROUNDS or marker.args[0]))
        marked = [pytest.param(number, marks=pytest.mark.faults) for number in later]
        metafunc.parametrize("number", [0, *marked])
