"""Muon (Jordan et al., 2024): momentum, made orthogonal, for matrices; AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from hekaton.optim import adamw
from hekaton.parameters import NamedParameter, ParameterGroup

if TYPE_CHECKING:
    from hekaton.config.sections import OptimizerSection
    from hekaton.config.sections.muon import MuonSection

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from the reference implementation."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, sharded in any way: the momentum stays sharded, and the whole matrix is gathered for
    the time that it takes to make it orthogonal, so that a step is that of a single process.

    :param params: parameter groups of matrices.
    :param lr: as for AdamW: updates are scaled to its typical size, ``0.2 * sqrt(max(rows, columns))`` (Liu
        et al., 2025, "Muon is Scalable for LLM Training").
    :param ns_steps: Newton-Schulz iterations; in float64 for parameters that are, else in bfloat16 on CUDA
        and in float32 on the CPU.
    """

    def __init__(
        self, params: Any, *, lr: float, weight_decay: float, momentum: float, nesterov: bool, ns_steps: int
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_steps": ns_steps,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum = state["momentum_buffer"]
        momentum.lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        direction = orthogonal(whole, steps=group["ns_steps"]).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            # Every rank has all of it, and keeps its part.
            direction = distribute_tensor(
                direction, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor, *, steps: int) -> torch.Tensor:
    """About the nearest matrix whose singular values are 1, by Newton-Schulz iterations.

    :param matrix: (rows, columns)
    """
    a, b, c = COEFFICIENTS
    if matrix.dtype != torch.float64:
        matrix = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    made: torch.Tensor = x.mT if tall else x
    return made


def build(
    section: MuonSection, settings: OptimizerSection, groups: Sequence[ParameterGroup]
) -> list[torch.optim.Optimizer]:
    """Two optimizers: Muon for the parameters of role ``matrix``, AdamW for the rest."""
    matrices = [
        group.as_torch(chosen)
        for group in groups
        if (chosen := [one for one in group.parameters if _is_matrix(one)])
    ]
    others = [
        ParameterGroup(name=group.name, lr=group.lr, weight_decay=group.weight_decay, parameters=chosen)
        for group in groups
        if (chosen := [p for p in group.parameters if not _is_matrix(p)])
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            Muon(
                matrices,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                momentum=section.momentum,
                nesterov=section.nesterov,
                ns_steps=section.ns_steps,
            )
        )
    if others:
        optimizers.append(adamw(None, settings, others))
    return optimizers


def _is_matrix(parameter: NamedParameter) -> bool:
    return parameter.role == "matrix"
