"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum made orthogonal, for matrices.

torch.optim.Muon always multiplies in bfloat16, which a CPU without such instructions does many times slower
than float32 (docs/decisions.md), and which `precision: fp32` does not expect; this one multiplies in it only
where hardware and precision both say so. Matrices of one shape go through together, and every rank does its
share of them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.models.precision import Precision, multiplies_bfloat16
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.parallelize import like, whole

# Five steps of X <- (a + b X X' + c (X X')^2) X bring all singular values near 1, not to it: faster so.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; steps as large in root mean square as AdamW's (arXiv:2502.16982)."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        precision: Precision,
        ranks: Ranks,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision, self.ranks = precision, ranks

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient, the same ones on all ranks."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape, parameter.device].append(parameter)
            for number, parameters in enumerate(shapes.values()):
                momenta = torch.stack([whole(self._momentum(p, group["momentum"])) for p in parameters])
                updates = torch.zeros_like(momenta)
                mine = slice((self.ranks.rank + number) % self.ranks.world, None, self.ranks.world)
                updates[mine] = orthogonalised(momenta[mine], self.precision)
                self.ranks.sum(updates)  # whose others are zero: to the bit what each rank alone would find
                size = 0.2 * math.sqrt(max(parameters[0].shape))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.add_(like(update, parameter), alpha=-group["lr"] * size)

    def _momentum(self, parameter: Tensor, decay: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum"].lerp_(gradient, 1 - decay)
        return gradient.lerp(average, decay)


def orthogonalised(matrices: Tensor, precision: Precision) -> Tensor:
    """Matrices [B, M, N] with singular values between about 0.7 and 1.2, and the same singular vectors."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    norm = torch.linalg.matrix_norm(wide, keepdim=True)
    x = wide / norm.clamp(min=1e-7)
    if precision != "fp32" and multiplies_bfloat16(x.device.type):
        x = x.bfloat16()
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrices else x.mT).to(matrices.dtype)
