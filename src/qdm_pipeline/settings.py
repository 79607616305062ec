"""Project settings that Kedro reads."""

from typing import Any

from qdm_pipeline.hooks import InputHook, NodesHook
from qdm_pipeline.parameters import ProjectContext
from qdm_pipeline.tracking import BoardsHook, MLflowHook

CONTEXT_CLASS = ProjectContext
HOOKS = (InputHook(), MLflowHook(), BoardsHook(), NodesHook())  # the last one is called first
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry",)
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},  # an environment names only the keys that it changes
    "config_patterns": {"mlflow": ["mlflow*"], "trackers": ["trackers*"]},
}
