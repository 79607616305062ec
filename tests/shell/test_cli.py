"""The project's own commands, and what is estimated before a run."""

from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from qdm_pipeline import doctor, estimate
from qdm_pipeline.cli import cli
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor
from qdm_pipeline.presets import parameters

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base() -> dict:
    return parameters(ROOT, "base")


def test_the_doctor_names_what_is_here_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 0, done.output
    for found in (f"torch             {torch.__version__}", "GiB", "world_size: auto", "extra dev"):
        assert found in done.output
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torch==1.0", "nobody-made-this", 'x; extra == "y"']
    )
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert f"torch: found {torch.__version__}, wanted ==1.0; make install" in done.output
    assert "nobody-made-this: found None" in done.output and "pip install -e .[y]" in done.output


def test_the_report_is_opened_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr(click, "launch", lambda url: opened.append(url) or 0)
    done = CliRunner().invoke(cli, ["open"])
    assert done.exit_code == 1 and "no report yet; `kedro run` makes one" in done.output
    report = tmp_path / "data/08_reporting/report.html"
    report.parent.mkdir(parents=True)
    report.write_text("")
    assert CliRunner().invoke(cli, ["open"]).exit_code == 0 and opened == [report.as_uri()]


def test_the_export_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["export", "mine"])
    assert done.exit_code == 1 and "no export yet; `kedro run --pipelines sample` makes one" in done.output
    made = tmp_path / "data/06_models/export-1/predictor"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (tmp_path / "data/06_models/student_export.json").write_text('{"path": "export-1"}')
    assert CliRunner().invoke(cli, ["export", "mine"]).exit_code == 0
    assert (tmp_path / "mine/predictor/config.json").read_text() == "{}"
    again = CliRunner().invoke(cli, ["export", "mine"])
    assert again.exit_code == 1 and "mine: exists already; name a new directory" in again.output


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "http://tracking:80"])
def test_mlflow_is_opened_where_its_runs_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("conf/base", "conf/local"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "conf/base/mlflow.yml").write_text(f"tracking_uri: {uri}\n")
    done: list[str] = []
    monkeypatch.setattr(click, "launch", lambda url: done.append(url) or 0)
    monkeypatch.setattr("subprocess.call", lambda command: done.append(command[3]) or 0)
    assert CliRunner().invoke(cli, ["open", "mlflow"]).exit_code == 0
    assert done == [uri if uri.startswith("http") else f"sqlite:///{tmp_path}/mlflow.db"]


def test_states_are_those_of_real_networks(base: dict) -> None:
    config, latents = estimate.shapes(base)
    model = QuantizedDiffusionPredictor(config)
    weights = sum(p.numel() for p in model.parameters())
    layers = [layer for layer in model.blocks.modules() if isinstance(layer, torch.nn.Linear)]
    matrices = sum(layer.weight.numel() for layer in layers)
    assert latents == (2, 3, 8, 8)
    # weights, gradients and average of all; two moments by AdamW, one by Muon for the blocks' matrices
    assert estimate.states(base)["teacher"] == 4 * (5 * weights - matrices)


@pytest.mark.parametrize("room", [0.99, 1.01])
def test_a_model_too_large_is_refused(base: dict, monkeypatch: pytest.MonkeyPatch, room: float) -> None:
    state = estimate.states(base)["distillation"]
    monkeypatch.setattr(estimate, "total_bytes", lambda: int(2 * state * room))  # two processes
    if room > 1:
        estimate.check_memory(base, {"distillation"})
    else:
        with pytest.raises(InputError, match="^distill: weights, gradients and moments alone take 0.1 GiB"):
            estimate.check_memory(base, {"distillation"})
    parallel = replace(base["distill"].parallel, strategy="fsdp")
    estimate.check_memory(base | {"distill": replace(base["distill"], parallel=parallel)}, {"distillation"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("frames", 12, "clips.frames: found 12, the autoencoder takes 4 k + 1, for example 13"),
        ("frames", 1, "clips.frames: found 1, the autoencoder takes 4 k + 1, for example 5"),
        ("size", 18, "clips.size: found 18, the autoencoder takes 4 k, for example 16"),
        ("size", 20, r"teacher.model.patch: found \[1, 2, 2\], which does not divide latents of \[3, 5, 5\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(base: dict, key: str, value: int, said: str) -> None:
    model = replace(base["teacher"].model, patch=(1, 2, 2))
    settings = base | {"teacher": replace(base["teacher"], model=model)}
    estimate.check_shapes(settings)
    with pytest.raises(InputError, match=f"^{said}".replace(" + ", r" \+ ")):
        estimate.check_shapes(settings | {"clips": replace(base["clips"], **{key: value})})


def test_a_student_that_cannot_be_sampled_as_asked_is_not_distilled() -> None:
    long = parameters(ROOT, "long")
    estimate.check_calls(long)
    dmd = long["distill"].dmd
    for change, said in (
        ({"times": (1.0, 0.5)}, "did not learn"),
        ({"renoising": "kept"}, "one of them twice"),
    ):
        distill = replace(long["distill"], dmd=replace(dmd, **change))
        with pytest.raises(InputError, match=f"student: times: found .*{said}"):
            estimate.check_calls(long | {"distill": distill})
