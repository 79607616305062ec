"""A codebook that follows its tokens: they turn, grow and shift, as features do while a network learns."""

import math
import sys
from statistics import mean

import torch
from torch import Tensor

from benchmarks.harness import report
from qdm_pipeline.models.codebook_use import codebook_use
from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer
from qdm_pipeline.randomness import generator

DIM, STEPS, WINDOW = 8, 300, 50  # the figures are those of the last WINDOW steps
TOKENS_A_CODE = 4  # in each step


def tokens(count: int, step: int, drift: bool) -> Tensor:
    """``count`` normal tokens [count, DIM] whose frame turns by a right angle, doubles and moves by 2."""
    x = torch.randn(count, DIM, generator=generator(0, step, 0, "drift tokens"))
    if not drift:
        return x
    share = step / STEPS
    angle = torch.tensor(share * math.pi / 2)
    a, b = x[:, 0::2], x[:, 1::2]
    x = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(1)
    return x * (1 + share) + 2 * share


def follow(size: int, drift: bool, decay: float, threshold: float) -> dict[str, float]:
    """Use, relative error and churn of a codebook of ``size`` codes at the end of the way."""
    settings = QuantizerSettings(
        kind="vq", codebook_size=size, codebook_dim=DIM, groups=1, decay=decay, revival_threshold=threshold
    )
    quantizer = VectorQuantizer(DIM, settings)
    churn, error = [], []
    with torch.no_grad():
        for step in range(STEPS):
            quantizer(tokens(TOKENS_A_CODE * size, step, drift), collect=True)
            if step == STEPS - WINDOW:
                quantizer.take_usage()
            metrics = quantizer.commit(0, step)
            churn.append(float(metrics["codebook/replaced"]))
            error.append(float(metrics["codebook/error"]))
    use = codebook_use(quantizer.take_usage())
    return {
        "utilization": use.utilization,
        "perplexity": use.perplexity / size,
        "error": mean(error[-WINDOW:]),
        "churn": mean(churn[-WINDOW:]) / size,
    }


GOALS = {
    False: {"utilization": ">= 0.999", "perplexity": ">= 0.95", "churn": "<= 0.001"},
    True: {"utilization": ">= 0.999", "perplexity": ">= 0.89", "churn": "<= 0.001"},
}


def run(size: int) -> None:
    """A codebook of one size, over tokens that stand still and over tokens that drift."""
    found = {drift: follow(size, drift, decay=0.85, threshold=0.25) for drift in GOALS}
    for drift, goals in GOALS.items():
        case = f"{size} codes, {'drifting' if drift else 'still'} tokens"
        for name, goal in goals.items():
            report(case, name, {"ours": found[drift][name]}, found[drift][name], 0.0, goal)
    errors = {"ours": found[True]["error"], "floor": found[False]["error"]}
    case = f"{size} codes, drifting tokens against still ones"
    report(case, "error", errors, errors["ours"] / errors["floor"], 0.0, "<= 1.05")


if __name__ == "__main__":
    for size in map(int, sys.argv[1:] or ("4096", "8192", "16384")):
        run(size)
