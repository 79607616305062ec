"""What stops a distillation that has gone wrong, by name."""

import math
from collections.abc import Sequence
from typing import Literal

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.training.statistics import Statistics


@settings
class GuardSettings:
    """Bounds for the student's answers at each of its steps.

    What is bounded from above is a share of what real latents have; from below, of what the student began
    with at that step: a first step answers with means, which are alike, and may go on to.
    """

    then: Literal["stop", "best"]  # stop: end with an error; best: end with the best student so far
    patience: int  # updates in a row that break a bound; what is not finite stops at once
    most_mean: float  # distance of the means, in standard deviations
    most_std: float
    least_std: float
    least_diversity: float
    least_perplexity: float

    def __post_init__(self) -> None:
        require(self.patience >= 1, f"patience: found {self.patience}, must be at least 1")
        require(self.most_std > 1, f"most_std: found {self.most_std}, must be above 1")
        require(self.most_mean > 0, f"most_mean: found {self.most_mean}, must be above 0")
        for name in ("least_std", "least_diversity", "least_perplexity"):
            require(0 <= getattr(self, name) < 1, f"{name}: found {getattr(self, name)}, must be in [0, 1)")


class Guard:
    """Holds every update against real latents and against the student at its start, step by step."""

    def __init__(self, settings: GuardSettings, real: Statistics, start: Sequence[Statistics]) -> None:
        self.settings, self.real, self.start = settings, real, start
        self.broken = 0  # updates in a row

    def check(self, update: int, last: int, found: Statistics, loss: float) -> dict[str, float]:
        """Mean and deviations of the answers at step ``last`` relative to real latents.

        Raises `DivergenceError` that names what is wrong.
        """
        bounds, real, start = self.settings, self.real, self.start[last]
        numbers = {"loss": loss, "latent mean": found.mean, "latent std": found.std}
        if broken := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise DivergenceError(f"student, update {update}: not finite: {', '.join(broken)}")
        mean, std = abs(found.mean - real.mean) / real.std, found.std / real.std
        wrong = []
        if mean > bounds.most_mean:
            wrong.append(f"drift: mean {mean:.3g} deviations from the data's, at most {bounds.most_mean}")
        if std > bounds.most_std:
            wrong.append(f"saturation: deviation {std:.3g} of the data's, at most {bounds.most_std}")
        for name, what, least in (
            ("collapse", "std", bounds.least_std),
            ("collapse", "diversity", bounds.least_diversity),
            ("dead codebook", "perplexity", bounds.least_perplexity),
        ):
            now, then = getattr(found, what), getattr(start, what)
            if now is not None and then is not None and now < least * then:
                wrong.append(f"{name}: {what} {now:.3g}, {then:.3g} at the start, at least {least} of that")
        self.broken = self.broken + 1 if wrong else 0
        if self.broken >= bounds.patience:
            raise DivergenceError(f"student, update {update}: {'; '.join(wrong)}")
        return {"student/latent_mean": found.mean, "student/latent_std": std} | {
            f"student/latent_{name}": value
            for name, value in (("diversity", found.diversity), ("perplexity", found.perplexity))
            if value is not None
        }
