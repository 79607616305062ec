"""What stops a distillation that has gone wrong, by name."""

import math
from typing import Literal

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.training.statistics import Statistics


@settings
class GuardSettings:
    """Bounds for the student's answers, as shares of what real latents have (mean: in their deviations)."""

    then: Literal["stop", "best"]  # stop: end with an error; best: end with the best student so far
    patience: int  # updates in a row that break a bound; what is not finite stops at once
    most_mean: float
    least_std: float
    most_std: float
    least_diversity: float
    least_perplexity: float

    def __post_init__(self) -> None:
        require(self.patience >= 1, f"patience: found {self.patience}, must be at least 1")
        low, high = self.least_std, self.most_std
        require(0 <= low < 1 < high, f"least_std, most_std: found {low}, {high}; need least < 1 < most")
        for name in ("most_mean", "least_diversity", "least_perplexity"):
            require(getattr(self, name) >= 0, f"{name}: found {getattr(self, name)}, must not be negative")


class Guard:
    """Holds the student of every update against real latents."""

    def __init__(self, settings: GuardSettings, real: Statistics) -> None:
        self.settings, self.real = settings, real
        self.broken = 0  # updates in a row

    def check(self, update: int, found: Statistics, loss: float) -> dict[str, float]:
        """``found`` relative to real latents; `DivergenceError` that names what is wrong."""
        bounds, real = self.settings, self.real
        relative = {
            "mean": abs(found.mean - real.mean) / real.std,
            "std": found.std / real.std,
        }
        for name in ("diversity", "perplexity"):
            ours, theirs = getattr(found, name), getattr(real, name)
            if ours is not None and theirs is not None:
                relative[name] = ours / theirs
        if broken := [name for name, value in {**relative, "loss": loss}.items() if not math.isfinite(value)]:
            raise DivergenceError(f"student, update {update}: not finite: {', '.join(broken)}")
        wrong = [
            f"{name}: latent {what} is {relative[what]:.3g} of the data's, {bound} is allowed"
            for name, what, low, high, bound in (
                ("drift", "mean", 0.0, bounds.most_mean, f"at most {bounds.most_mean}"),
                ("collapse", "std", bounds.least_std, math.inf, f"at least {bounds.least_std}"),
                ("saturation", "std", 0.0, bounds.most_std, f"at most {bounds.most_std}"),
                ("collapse", "diversity", bounds.least_diversity, math.inf,
                 f"at least {bounds.least_diversity}"),
                ("dead codebook", "perplexity", bounds.least_perplexity, math.inf,
                 f"at least {bounds.least_perplexity}"),
            )
            if not low <= relative.get(what, low) <= high
        ]  # fmt: skip
        self.broken = self.broken + 1 if wrong else 0
        if self.broken >= bounds.patience:
            raise DivergenceError(f"student, update {update}: {'; '.join(wrong)}")
        return {f"student/latent_{name}": value for name, value in relative.items()}
