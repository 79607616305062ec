"""What the README says exists, in both languages."""

import re
from pathlib import Path

import pytest
import yaml
from kedro.framework.project import configure_project, pipelines

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_somewhere(readme: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / readme).read_text())
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.parametrize("readme", READMES)
def test_named_paths_exist(readme: str) -> None:
    paths = re.findall(r"`((?:src|conf|docs|benchmarks|tests)/[\w./-]+)`", (ROOT / readme).read_text())
    assert paths and not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("readme", READMES)
def test_commands_exist(readme: str) -> None:
    text, makefile = (ROOT / readme).read_text(), (ROOT / "Makefile").read_text()
    configure_project("qdm_pipeline")
    named = set(re.findall(r"kedro run --pipelines? (\w+)", text))
    targets = set(re.findall(r"make (\w+)", text))
    assert named and named <= set(pipelines)
    assert {"demo", "test"} <= targets and all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize("readme", READMES)
def test_parameters_named_on_the_command_line_exist(readme: str) -> None:
    parameters: dict[str, object] = {}
    for file in (ROOT / "conf/base").glob("parameters*.yml"):
        parameters |= yaml.safe_load(file.read_text())
    for change in re.findall(r"--params (\S+?)`", (ROOT / readme).read_text()):
        for key in (pair.split("=")[0].split(".") for pair in change.split(",")):
            value: object = parameters
            for name in key:
                assert isinstance(value, dict) and name in value, key
                value = value[name]


def test_both_languages_have_the_same_sections_and_commands() -> None:
    texts = [(ROOT / readme).read_text() for readme in READMES]
    shape = [re.findall(r"^#+ ", text, re.MULTILINE) for text in texts]
    code = [
        [re.sub(r"\s*#.*", "", block) for block in re.findall(r"```.*?```", text, re.DOTALL)]
        for text in texts
    ]
    assert shape[0] == shape[1] and code[0] == code[1]
