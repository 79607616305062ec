"""Wrong parameters are refused by name and file, before any node runs."""

from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.pipeline import node, pipeline
from pluggy import PluginManager

from qdm_pipeline import parameters
from qdm_pipeline.configuration import build, plain, require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.launch.world import WorldSize
from qdm_pipeline.settings import CONFIG_LOADER_ARGS


@settings
class Optimizer:
    rate: float
    betas: tuple[float, float]

    def __post_init__(self) -> None:
        require(self.rate > 0, f"rate: found {self.rate}, must be positive")


@settings
class Teacher:
    optimizer: Optimizer
    critic: Optimizer | None
    steps: int


def train(settings: Teacher, world_size: WorldSize) -> WorldSize:
    return world_size


GOOD = """
teacher:
  optimizer: {rate: 1e-3, betas: [0.9, 0.99]}
  critic: null
  steps: 10
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wiring = pipeline([node(train, ["params:teacher", "params:world_size"], "out", name="train")])
    monkeypatch.setattr(parameters, "pipelines", {"__default__": wiring})
    for env in ("base", "local"):
        (tmp_path / "conf" / env).mkdir(parents=True)
    (tmp_path / "conf/base/parameters_train.yml").write_text(GOOD)
    (tmp_path / "conf/base/parameters.yml").write_text("world_size: 2\n")
    return tmp_path / "conf"


def context(conf: Path, overrides: dict[str, object] | None = None) -> KedroContext:
    loader = OmegaConfigLoader(str(conf), env="local", runtime_params=overrides, **CONFIG_LOADER_ARGS)
    return parameters.ProjectContext(
        conf.parent, loader, "local", "qdm_pipeline", PluginManager("kedro"), overrides
    )


@settings
class Picture:
    size: int | tuple[int, int] | None


@pytest.mark.parametrize("size", [3, (3, 5), None])
def test_either_of_two_kinds_comes_back_as_it_was(size: int | tuple[int, int] | None) -> None:
    assert build(Picture, plain(Picture(size=size))) == Picture(size=size)


def test_a_kind_is_no_part_of_the_key() -> None:
    with pytest.raises(InputError) as caught:
        parameters.typed_parameters({"a": {"size": "big"}}, {"a": Picture}, lambda key: "here")
    said = str(caught.value).splitlines()
    assert len(said) == 2 and all(line.startswith("here: a.size: found 'big': input") for line in said)


def test_nested_settings_are_built(conf: Path) -> None:
    params = context(conf).params
    assert params == {
        "world_size": 2,
        "teacher": Teacher(optimizer=Optimizer(rate=1e-3, betas=(0.9, 0.99)), critic=None, steps=10),
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 10", "steps: many", "teacher.steps: found 'many': input should be a valid integer"),
        ("steps: 10", "", "teacher.steps: missing"),
        ("rate: 1e-3", "rate: -1.0", "teacher.optimizer: rate: found -1.0, must be positive"),
        ("rate: 1e-3", "rate: 1, rat: 2", "teacher.optimizer.rat: unknown; known are rate, betas"),
        (
            "critic: null",
            "critic: {rate: 1, betas: [0, 0], b: 1}",
            "teacher.critic.b: unknown; known are rate, betas",
        ),
        ("steps: 10", "steps: 10\n  step: 1", "teacher.step: unknown; known are optimizer, critic, steps"),
        ("teacher:", "teachr:", "teachr: unknown; known are teacher, world_size"),
    ],
)
def test_what_is_wrong_is_named(conf: Path, old: str, new: str, message: str) -> None:
    file = conf / "base/parameters_train.yml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        _ = context(conf).params
    assert f"conf/base/parameters_train.yml: {message}" in str(caught.value)


def test_every_allowed_kind_is_said(conf: Path) -> None:
    with pytest.raises(InputError) as caught:
        _ = context(conf, {"world_size": "many"}).params
    literal, integer = str(caught.value).splitlines()
    assert literal == "--params: world_size: found 'many': input should be 'auto'"
    assert integer.startswith("--params: world_size: found 'many': input should be a valid integer")


def test_the_file_of_the_environment_or_the_command_line_is_named(conf: Path) -> None:
    (conf / "local/parameters.yml").write_text("teacher: {steps: x}\n")
    with pytest.raises(InputError, match=r"^conf/local/parameters.yml: teacher.steps: found 'x'"):
        _ = context(conf).params
    with pytest.raises(InputError, match=r"^--params: teacher.steps: found 'y'"):
        _ = context(conf, {"teacher": {"steps": "y"}}).params


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (
            {"rate": 0.1, "old": 1},
            r"^Stored: unknown \['old'\], missing \['kind'\]; what is stored was made by",
        ),
        ({"rate": 0.1, "kind": {"size": 1}}, r"^Kind: unknown \['size'\], missing \['name'\]"),
    ],
)
def test_what_another_version_has_stored_is_refused(stored: dict[str, object], said: str) -> None:
    @settings
    class Kind:
        name: str

    @settings
    class Stored:
        kind: Kind
        rate: float
        extra: int = 0

    Stored.__annotations__["kind"] = Kind  # a class inside of a function has no name that hints could find
    assert build(Stored, {"kind": {"name": "a"}, "rate": 0.1}) == Stored(kind=Kind(name="a"), rate=0.1)
    with pytest.raises(InputError, match=said):
        build(Stored, stored)
