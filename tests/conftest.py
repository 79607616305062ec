"""For all tests: one thread, how many rounds a fault is tried, and a tiny project that has run once.

One thread: two OpenMP threads on a busy two-core machine are many times slower than one.
"""

import os
import re

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KEDRO_DISABLE_TELEMETRY"] = "1"

import shutil  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

ROUNDS = {"few": range(2), "full": range(10**9)}  # at most; a test says how many it has
asked = os.environ.get("FAULT_ROUNDS", "few")
if part := re.fullmatch(r"(\d+)-(\d+)", asked):
    FAULT_ROUNDS = range(int(part[1]), int(part[2]) + 1)
elif asked in ROUNDS:
    FAULT_ROUNDS = ROUNDS[asked]
else:
    raise pytest.UsageError(f"FAULT_ROUNDS: found {asked!r}, allowed are {', '.join(ROUNDS)} and, say, 10-19")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test marked ``rounds(total)`` a ``number`` from 0; ``make faults`` runs more than the first."""
    marker = metafunc.definition.get_closest_marker("rounds")
    if marker is not None:
        marked = [
            pytest.param(number, marks=pytest.mark.faults) if number else 0
            for number in range(marker.args[0])
            if number in FAULT_ROUNDS
        ]
        metafunc.parametrize("number", marked)


ROOT = Path(__file__).parents[1]
KedroRun = Callable[..., None]  # (project, pipeline), and options of `KedroSession.run`


@pytest.fixture(scope="session")
def kedro_run() -> KedroRun:
    """Runs a pipeline of the tiny project in a folder."""
    from kedro.framework.project import configure_project
    from kedro.framework.session import KedroSession

    def run(project: Path, pipeline: str, **options: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project)
            configure_project("qdm_pipeline")
            with KedroSession.create(project, env="tiny") as session:
                session.run(pipeline_names=[pipeline], **options)

    return run


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, kedro_run: KedroRun) -> Path:
    """A project of its own that shares code and configuration with this one, after one run of everything."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", project / "conf", ignore=shutil.ignore_patterns("local"))
    shutil.copytree(ROOT / "tests/tiny", project / "conf/tiny")
    shutil.copy(ROOT / "pyproject.toml", project)  # by which Kedro knows the project's folder
    (project / "src").mkdir()
    kedro_run(project, "demo_data")
    kedro_run(project, "__default__")
    return project
