"""The ablation bench: the points of the documentation, by the jobs of the pipelines."""

import shlex
import shutil
from pathlib import Path

import pytest
from benchmarks import ablation as bench

from qdm_pipeline.files import read_json
from qdm_pipeline.grid import grid

ROOT = Path(__file__).parents[1]


def test_the_bench_runs_the_ablation_of_the_documentation() -> None:
    text = (ROOT / "docs/distillation.md").read_text().replace("\\\n", "")
    command = next(line for line in text.splitlines() if line.startswith("kedro sweep --each"))
    documented = grid(shlex.split(command)[3:], each=True)
    assert sorted(documented, key=str) == sorted(bench.ablation(), key=str)


def test_the_bench_meets_what_kedro_made_and_does_only_what_is_new(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    before = set(copy.glob("data/0*/*-*"))
    for module in (bench.train, bench.sample, bench.evaluate):
        monkeypatch.setattr(module, "run_job", module.run_job)
    monkeypatch.chdir(copy)
    points = [{}, {"distill.student_optimizer.lr": "5e-5"}, {"distill.dmd.times": [0.5, 0.5]}]
    bench.run(copy, {"kind": points}, bench.configured(copy, "tiny"), slots=2)
    same, changed, failed = read_json(copy / "data/08_reporting/kind/sweep.json")
    assert [same["point"], changed["point"], failed["point"]] == points
    assert same["rows"] == read_json(copy / "data/08_reporting/metrics.json")["rows"]
    made = sorted(path.name.partition("-")[0] for path in set(copy.glob("data/0*/*-*")) - before)
    assert made == ["evaluation", "samples", "student"], made
    assert changed["error"] is None and changed["rows"] != same["rows"]
    assert failed["error"].startswith("ValueError: times: ") and failed["rows"] == []
