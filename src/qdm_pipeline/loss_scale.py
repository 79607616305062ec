"""Dynamic loss scaling: without it, gradients below 6e-8 are lost in float16."""

import logging
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.errors import DivergenceError
from qdm_pipeline.models.precision import Precision
from qdm_pipeline.ranks import Ranks

logger = logging.getLogger(__name__)

START, LEAST = 2.0**16, 1.0  # powers of two: scaling rounds nothing
PATIENCE = 2000  # updates without overflow before a larger scale is tried


class Update(NamedTuple):
    """What became of one update."""

    taken: bool  # if not, float16 gradients overflowed: the step counts, and all that learns stays as it was
    metrics: dict[str, float]


class LossScale:
    """The factor between one optimizer's losses and what backward sees (arXiv:1710.03740, section 3.2).

    It halves when a gradient overflows, and doubles after `PATIENCE` updates without. A loss that is not
    finite is no overflow: no scale changes it. With other precisions than fp16 the factor is 1 for good. In
    place of torch's GradScaler, which decides for each torch optimizer, and each rank, by itself.
    """

    def __init__(self, precision: Precision, ranks: Ranks) -> None:
        self.needed, self._ranks = precision == "fp16", ranks
        self.value, self.calm = START if self.needed else 1.0, 0
        self._broken = torch.tensor(False)  # whether a loss of this update was not finite, on its device

    def __call__(self, loss: Tensor) -> Tensor:
        """What to call backward on, for a micro-batch's share of this rank's loss."""
        if not self.needed:
            return loss
        self._broken = ~loss.detach().isfinite() | self._broken
        return loss * self._factor

    def undo(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients, accumulated and averaged over ranks, by the scale: before clipping."""
        if self.needed:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / self._factor)

    def judge(self, when: str, norm: float) -> Update:
        """Move the scale; on all ranks alike, whether to take an update whose gradient has this norm.

        Raises `DivergenceError` where a loss is not finite, where the gradient overflows at the least scale
        too, or, with other precisions, where the norm is not finite.
        """
        if not self.needed:
            if not math.isfinite(norm):
                raise DivergenceError(f"{when}: not finite: gradient norm is {norm}")
            return Update(True, {"gradient_norm": norm})
        found = torch.tensor([float(self._broken), float(not math.isfinite(norm))])
        broken, overflow = self._ranks.most(found).bool().tolist()
        self._broken = torch.tensor(False)
        if broken:
            raise DivergenceError(f"{when}: not finite: the loss")
        if not overflow:
            self.calm += 1
            if self.calm == PATIENCE:
                self.value, self.calm = 2 * self.value, 0
            return Update(True, {"gradient_norm": norm, "loss_scale": self.value})
        if self.value <= LEAST:
            raise DivergenceError(
                f"{when}: not finite: float16 gradients overflow at a loss scale of {self.value:g} too; "
                "precision bf16 or fp32 has the range"
            )
        self.value, self.calm = self.value / 2, 0
        logger.info("%s: float16 gradients overflow; skipped, loss scale now %g", when, self.value)
        return Update(False, {"loss_scale": self.value})

    @property
    def _factor(self) -> float:
        """Of a rank's loss: its micro-batches weigh in it what they do among those of all ranks.

        Then what overflows is the same on any number of ranks.
        """
        return self.value / self._ranks.world

    def state_dict(self) -> dict[str, Tensor]:
        """``loss_scale``, scale and updates without overflow, as a tensor [2]; empty where none is needed."""
        state = torch.tensor([self.value, self.calm], dtype=torch.float64)
        return {"loss_scale": state} if self.needed else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        if self.needed:
            value, calm = state["loss_scale"].tolist()
            self.value, self.calm = value, int(calm)
