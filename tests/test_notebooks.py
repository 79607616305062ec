"""The notebooks run on what a run leaves behind, and git holds them without their outputs."""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from kedro.framework.project import configure_project
from nbclient import NotebookClient

from qdm_pipeline.sweep import sweep

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this very Python that finds the code of this checkout, on the tiny project."""
    write_kernel_spec(tmp_path / "kernels/of-this-test")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("KEDRO_ENV", "tiny")
    return "of-this-test"


def execute(file: Path, project: Path, kernel: str) -> list[Any]:
    """Run a notebook from the folder ``notebooks`` of a project; returns all its outputs."""
    folder = project / "notebooks"
    folder.mkdir(exist_ok=True)
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def html(outputs: list[Any]) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def printed(outputs: list[Any], name: str) -> str:
    return "".join(output.text for output in outputs if output.get("name") == name)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_git_holds_no_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert not cell.outputs and cell.execution_count is None, f"{file.name}: run `make strip`"


def test_links_of_notebooks_lead_somewhere() -> None:
    for file in NOTEBOOKS:
        text = "".join(c.source for c in nbformat.read(file, 4).cells if c.cell_type == "markdown")
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
        assert not [target for target in targets if not (file.parent / target).exists()], file.name


def test_the_tour(project: Path, kernel: str) -> None:
    outputs = execute(ROOT / "notebooks/tour.ipynb", project, kernel)
    assert html(outputs).count("data:image/webp") == 6
    assert "decoded codes are the latents: True" in printed(outputs, "stdout")
    assert not printed(outputs, "stderr")


def test_the_codebook(project: Path, kernel: str) -> None:
    outputs = execute(ROOT / "notebooks/codebook.ipynb", project, kernel)
    assert html(outputs).count("data:image/webp") >= 1 + 1 + 3  # codes over space, a code's clips, damages
    assert "same codebook: True" in printed(outputs, "stdout")
    assert not printed(outputs, "stderr")


def test_a_single_run_can_be_compared(project: Path, kernel: str) -> None:
    outputs = execute(ROOT / "notebooks/compare_runs.ipynb", project, kernel)
    assert "image/png" in {kind for output in outputs for kind in output.get("data", {})}
    assert not printed(outputs, "stderr")


def test_runs_of_a_sweep_are_compared(
    project: Path, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.chdir(copy)
        configure_project("qdm_pipeline")
        assert not any(result.error for result in sweep(copy, ["evaluation.seed=0,1"], ["evaluate"], "tiny"))
    outputs = execute(ROOT / "notebooks/compare_runs.ipynb", copy, kernel)
    assert "2 runs" in printed(outputs, "stdout")
    assert "<th>evaluation.seed</th>" in html(outputs)
    tables = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
    assert tables.count("\n| student |") == 2
    assert not printed(outputs, "stderr")
