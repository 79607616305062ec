"""Optimizers and their learning rate as a function of the step alone."""

import math
from typing import Any

import torch
from torch import nn

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.loss_scale import LossScale, Update
from qdm_pipeline.models.precision import Precision
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.muon import Muon
from qdm_pipeline.training.parallelize import like, reshard, state_of, whole

MOMENTS = {"exp_avg", "exp_avg_sq", "momentum"}  # of the optimizers' state: what is laid out as a parameter


@settings
class OptimizerSettings:
    """AdamW for embeddings, projections and vectors; Muon for the matrices of the Transformer blocks."""

    lr: float
    muon_lr: float | None  # None: AdamW for the matrices too
    betas: tuple[float, float]
    weight_decay: float
    clip: float  # largest norm of the gradient
    warmup: int  # steps of linear warm-up
    decay: bool  # cosine decay to 0 at the last step

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr: found {self.lr}, must be above 0")
        require(len(self.betas) == 2, f"betas: found {self.betas}, must be two numbers")
        require(self.clip > 0, f"clip: found {self.clip}, must be above 0")
        require(self.warmup >= 0, f"warmup: found {self.warmup}, must not be negative")


class Optimizer:
    """One or two torch optimizers that step together under one schedule and one scale of the loss."""

    def __init__(
        self,
        role: str,
        module: nn.Module,
        settings: OptimizerSettings,
        steps: int,
        precision: Precision,
        ranks: Ranks,
    ) -> None:
        self.role, self.settings = role, settings
        self.steps = steps
        self.scale = LossScale(precision, ranks)
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        hidden = [
            p
            for name, p in named
            if settings.muon_lr and ".blocks." in f".{name}" and name.endswith("weight")
        ]
        chosen = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in chosen]
        betas, decay = settings.betas, settings.weight_decay
        self.parameters = [p for _, p in named]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, settings.lr, betas, weight_decay=decay)
        ]
        if hidden and settings.muon_lr:
            # at equal steps it reaches a clearly lower loss, see docs/decisions.md
            self.optimizers.append(Muon(hidden, settings.muon_lr, 0.95, decay, precision, ranks))
        self._peak = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, step: int) -> Update:
        """Clip, update with the learning rate of ``step`` unless the gradients have overflowed, clear.

        Metrics are the norm before clipping and, in fp16, the scale of the loss. Raises as
        `LossScale.judge` does, before any weight moves, on all ranks alike.
        """
        self.scale.undo(self.parameters)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)))
        update = self.scale.judge(f"{self.role}, update {step}", norm)
        scale = learning_rate_scale(step, self.steps, self.settings.warmup, self.settings.decay)
        for optimizer, peaks in zip(self.optimizers, self._peak, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            if update.taken:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return update

    def state_dict(self) -> dict[str, object]:
        """State of all optimizers, in whole tensors, and the scale; called on all ranks."""
        moments = {
            str(index): whole(optimizer.state_dict()) for index, optimizer in enumerate(self.optimizers)
        }
        return moments | self.scale.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.scale.load_state_dict(state)
        for index, optimizer in enumerate(self.optimizers):
            stored = state[str(index)]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {
                    name: like(value, parameters[number]) if name in MOMENTS else value
                    for name, value in kept.items()
                }
                for number, kept in stored["state"].items()
            }
            optimizer.load_state_dict(stored | {"state": moments})


def learning_rate_scale(step: int, steps: int, warmup: int, decay: bool) -> float:
    """Fraction of the peak learning rate at a step: linear warm-up, then constant or a half cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not decay:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Ema:
    """Exponential moving average of a module's parameters; its buffers are taken as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the parameters after update ``step`` (from 0); short runs forget their start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        reshard(module)
        live = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - decay)

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Whole tensors for ``module``: averaged parameters, present buffers; called on all ranks."""
        averaged: dict[str, torch.Tensor] = whole(self.shadow)
        return {name: averaged.get(name, value) for name, value in state_of(module).items()}

    def load(self, shadow: dict[str, torch.Tensor]) -> None:
        """Take whole averaged parameters as they were kept."""
        self.shadow = {name: like(value, self.shadow[name]) for name, value in shadow.items()}
