"""Seconds until `kedro run` has said what is wrong with it: each of the commonest mistakes."""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.harness import report, spread, take_turns

PROJECT = Path(__file__).parents[1]
KEDRO = Path(sys.executable).with_name("kedro")
TABLE = {"metadata.csv": "file\nmissing.mp4\n"}
BROKEN = {f"{number}.mp4": "not a video" for number in range(5)}

MISTAKES: list[tuple[str, dict[str, str] | None, list[str], str]] = [
    ("a key misspelt", {}, ["--params", "teacher.model.widht=3"], "unknown; known are width"),
    ("a value of the wrong kind", {}, ["--params", "teacher.steps=many"], "teacher.steps: found 'many'"),
    ("clips that do not fit", {}, ["--params", "clips.frames=10"], "found 10, the autoencoder takes 4 k + 1"),
    ("too large a model", {}, ["--params", "teacher.model.width=1000000"], "take a smaller model"),
    ("text without its encoder", {}, ["--params", "teacher.condition=text"], "which needs encode.text"),
    (
        "weights to be fetched",
        BROKEN,
        ["--params", "evaluation.extractor=i3d-ts"],
        "no such file; get it from",
    ),
    ("no videos", {}, [], "no videos in it"),
    ("no folder of videos", None, [], "no such folder"),
    ("a row without its video", TABLE, [], "file 'missing.mp4' does not exist"),
    ("nothing but broken videos", BROKEN, [], "videos are bad"),
    ("no model yet", {}, ["--pipelines", "distill"], "has been made yet"),
    ("a pipeline misspelt", {}, ["--pipelines", "trian"], "Did you mean one of these instead? train"),
    ("an environment misspelt", {}, ["--env", "midium"], "conf/midium"),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        for name in ("pyproject.toml", "README.md", ".telemetry"):
            shutil.copy(PROJECT / name, project)
        for name in ("conf", "src"):
            shutil.copytree(PROJECT / name, project / name)
        for case, files, options, said in MISTAKES:
            place(project, files)
            seconds = take_turns({"ours": partial(fail, project, options, said)}, rounds=3)["ours"]
            report(case, "seconds", {"ours": median(seconds)}, median(seconds), spread(seconds), "<= 10")


def place(project: Path, files: dict[str, str] | None) -> None:
    shutil.rmtree(project / "data", ignore_errors=True)
    if files is not None:
        folder = project / "data/01_raw/digits"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)


def fail(project: Path, options: list[str], said: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(KEDRO), "run", *options]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and said in last, done.stderr[-2000:]


if __name__ == "__main__":
    main()
