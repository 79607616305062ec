"""Sampling a student in four steps on one thread: rounded weights and compiled blocks against plain ones.

The models have the sizes of presets and random weights.
"""

import copy
import json
from functools import partial
from statistics import median

import torch

from benchmarks.harness import report, spread, take_turns
from benchmarks.presets import SIZES
from qdm_pipeline.configuration import build
from qdm_pipeline.models.predictor import PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.training.generate import Generation, GenerationSettings, prepare
from qdm_pipeline.training.int8 import weight_bytes

ROUNDS = 3
Way = tuple[str, bool]  # weights, compiled
WAYS: dict[str, Way] = {
    "full": ("full", False),
    "int8_weight": ("int8_weight", False),
    "int8_dynamic": ("int8_dynamic", False),
    "full, compiled": ("full", True),
    "int8_weight, compiled": ("int8_weight", True),
    "int8_dynamic, compiled": ("int8_dynamic", True),
}
CASES = {"base": (8, tuple(WAYS)), "small": (1, ("full", "int8_weight", "full, compiled"))}  # clips, ways
GOALS = {"full, compiled": "<= 1", "int8_weight": "<= 1.25", "int8_weight, compiled": "<= 1.25"}


def student(preset: str) -> tuple[QuantizedDiffusionPredictor, dict[str, object]]:
    """A predictor of the preset's size and what its ``config.json`` would say."""
    sizes = json.loads(SIZES.read_text())[preset]
    torch.manual_seed(0)
    model = QuantizedDiffusionPredictor(build(PredictorConfig, sizes["predictor"])).requires_grad_(False)
    for layer in (model.modulation, model.final_modulation):  # zero at first: blocks would do nothing
        torch.nn.init.normal_(layer.weight, std=0.02)
    times = [1.0, 0.75, 0.5, 0.25]
    schedule = {"name": "flow", "shift": 1.0}
    config = {"schedule": schedule, "latent_shape": sizes["latents"], "times": times}
    return model.eval(), config | {"sampler": "ddim", "path": "quantized"}


def settings(way: Way, clips: int) -> GenerationSettings:
    return build(
        GenerationSettings,
        dict(
            name="student", sampler=None, steps=None, times=None, low=0.0, high=1.0, eta=0.0, guidance=1.0,
            path=None, asked=None, size=None, count=clips, batch=clips, at_once=clips, keep=(),
            precision="fp32", weights=way[0], compile=way[1], seed=0,
        ),
    )  # fmt: skip


def run(preset: str, clips: int, ways: tuple[str, ...]) -> None:
    """Time and memory of one size."""
    plain, config = student(preset)
    models = {way: copy.deepcopy(plain) for way in ways}
    drawn = {}
    for way, model in models.items():
        chosen = settings(WAYS[way], clips)
        prepare(model, chosen)
        drawn[way] = Generation(chosen, model, config)
    case = f"{preset}, {clips} clips"
    seconds = take_turns({way: partial(each.batch, 0) for way, each in drawn.items()}, ROUNDS)
    middle = {way: median(times) for way, times in seconds.items()}
    for way in ways[1:]:
        pair = {"full": middle["full"], way: middle[way]}
        noise, goal = spread(seconds[way]), GOALS.get(way, "<= 1")
        report(case, "seconds a batch", pair, middle[way] / middle["full"], noise, goal)
    memory = {way: weight_bytes(models[way]) / 2**20 for way in ("full", "int8_weight")}
    ratio = memory["int8_weight"] / memory["full"]
    report(case, "MiB of weights", memory, ratio, 0.0, "<= 0.6")


if __name__ == "__main__":
    for preset, (clips, ways) in CASES.items():
        run(preset, clips, ways)
