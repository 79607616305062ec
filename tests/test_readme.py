"""What the README says exists, in both languages."""

import re
from pathlib import Path

import pytest
import yaml
from kedro.framework.project import configure_project, pipelines

from qdm_pipeline.reference import reference

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
PAGES = [*READMES, "docs/distillation.md", "docs/clusters.md"]


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


@pytest.mark.parametrize("page", PAGES)
def test_parameters_named_on_the_command_line_exist(page: str) -> None:
    parameters: dict[str, object] = {}
    for file in (ROOT / "conf/base").glob("parameters*.yml"):
        parameters |= yaml.safe_load(file.read_text())
    text = (ROOT / page).read_text()
    keys = [
        pair.split("=")[0] for change in re.findall(r"--params (\S+?)`", text) for pair in change.split(",")
    ]
    for command in re.findall(r"kedro sweep (.+?)(?:`|$)", text, re.MULTILINE):
        axes = [word.strip('"') for word in command.split() if "=" in word]
        keys += [key for axis in axes for key in axis.split("=")[0].split("+")]
    assert keys
    for key in keys:
        value: object = parameters
        for name in key.split("."):
            assert isinstance(value, dict) and name in value, key
            value = value[name]


def test_every_option_of_a_distillation_is_explained() -> None:
    text = (ROOT / "docs/distillation.md").read_text()
    settings = yaml.safe_load((ROOT / "conf/base/parameters_train.yml").read_text())["distill"]
    names = [*settings["dmd"], *settings["dmd"]["gan"], *settings["guard"], *settings["validation"]]
    assert not [name for name in names if name not in text]


def test_both_languages_have_the_same_sections_and_commands() -> None:
    texts = [(ROOT / readme).read_text() for readme in READMES]
    shape = [re.findall(r"^#+ ", text, re.MULTILINE) for text in texts]
    code = [
        [re.sub(r"\s*#.*", "", block) for block in re.findall(r"```.*?```", text, re.DOTALL)]
        for text in texts
    ]
    assert shape[0] == shape[1] and code[0] == code[1]


def test_the_reference_of_parameters_is_what_the_command_prints() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(ROOT), (
        "run: kedro parameters > docs/configuration.md"
    )
