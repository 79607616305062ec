"""One thread everywhere: two OpenMP threads on a busy two-core machine are many times slower than one.

And the project of the tests that look at all of it: everything tiny, run once for all files.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KEDRO_DISABLE_TELEMETRY"] = "1"

import shutil  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

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
