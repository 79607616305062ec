"""How long the first answer takes: ours beside an empty Kedro project and ``import torch``."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.harness import report, spread, take_turns

PROJECT = Path(__file__).parents[1]
KEDRO = Path(sys.executable).with_name("kedro")
IMPORT = "from qdm_pipeline import QuantizedVideoPipeline"
EMPTY = {
    "pyproject.toml": '[tool.kedro]\npackage_name = "empty"\nproject_name = "empty"\n'
    'kedro_init_version = "1.7.0"\nsource_dir = "src"\n',
    "src/empty/__init__.py": "",
    "src/empty/settings.py": "DISABLE_HOOKS_FOR_PLUGINS = ('kedro-telemetry',)\n",
    "src/empty/pipeline_registry.py": "def register_pipelines():\n    return {}\n",
}


def run(folder: Path, *command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        empty = Path(temporary)
        for name, text in EMPTY.items():
            (empty / name).parent.mkdir(parents=True, exist_ok=True)
            (empty / name).write_text(text)
        seconds = take_turns(
            {
                "ours": lambda: run(PROJECT, str(KEDRO), "run", "--help"),
                "peer": lambda: run(empty, str(KEDRO), "run", "--help"),
            }
        )
        show("kedro run --help, beside an empty project", seconds, "<= 1.3")
    seconds = take_turns(
        {
            "ours": lambda: run(PROJECT, sys.executable, "-c", IMPORT),
            "peer": lambda: run(PROJECT, sys.executable, "-c", "import torch"),
        }
    )
    show("import of the package's API, beside torch", seconds, "<= 1.5")


def show(case: str, seconds: dict[str, list[float]], goal: str) -> None:
    middle = {name: median(values) for name, values in seconds.items()}
    report(case, "seconds", middle, middle["ours"] / middle["peer"], spread(seconds["ours"]), goal)


if __name__ == "__main__":
    main()
