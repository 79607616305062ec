"""The wiring as a whole."""

import json
import re
import subprocess
import sys
from pathlib import Path

from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog

from qdm_pipeline.parameters import hints, typed_parameters
from qdm_pipeline.pipeline_registry import register_pipelines
from qdm_pipeline.settings import CONFIG_LOADER_ARGS

CONF = Path(__file__).parents[2] / "conf"


def loader() -> OmegaConfigLoader:
    return OmegaConfigLoader(str(CONF), env="base", **CONFIG_LOADER_ARGS)


def test_the_pipelines_have_their_names_and_parts() -> None:
    pipelines = register_pipelines()
    assert set(pipelines) == {
        "__default__", "demo_data", "preprocess", "train", "teacher", "distill", "sample", "evaluate",
    }  # fmt: skip
    parts = [pipelines[name] for name in ("preprocess", "train", "sample", "evaluate")]
    assert set(pipelines["__default__"].nodes) == {node for part in parts for node in part.nodes}
    assert set(pipelines["train"].nodes) == {*pipelines["teacher"].nodes, *pipelines["distill"].nodes}
    assert {node.namespace for node in pipelines["__default__"].nodes} == {
        "preprocess", "train", "sample", "evaluate",
    }  # fmt: skip


def test_kedro_viz_styles_what_there_is() -> None:
    pipeline = register_pipelines()["__default__"]
    names = {node._name for node in pipeline.nodes} | pipeline.datasets()
    assert set(json.loads((CONF.parent / ".viz/styles.json").read_text())) <= names


def test_everything_that_passes_between_nodes_is_in_the_catalog() -> None:
    catalog = DataCatalog.from_config(loader()["catalog"])
    for pipeline in register_pipelines().values():
        for name in pipeline.datasets():
            assert name.startswith("params:") or name in catalog, name


def test_help_and_sweeps_start_without_torch() -> None:
    code = "import sys, qdm_pipeline.cli, qdm_pipeline.settings; print({'torch', 'mlflow'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_default_parameters_are_valid_and_all_used() -> None:
    types = hints(register_pipelines())
    assert set(typed_parameters(loader()["parameters"], types, lambda key: "conf/base")) == set(types)


def test_the_step_of_a_distillation_is_drawn_on_its_node() -> None:
    nodes = {node.name: node for node in register_pipelines()["distill"].nodes}
    preview = nodes["train.distill_student"].preview()
    assert preview is not None
    first, *lines = preview.to_dict()["content"].splitlines()
    assert first == "flowchart LR" and len(lines) > 10
    for line in lines:  # a parenthesis outside of quotes is a shape to Mermaid, and must be one
        bare = re.sub(r'"[^"]*"', "", line)
        assert not re.search(r"[^\w\s\[\](){}|.<>&-]", bare) and bare.count("([") == bare.count("])")
