"""The optimizer: a torch optimizer over groups of named parameters, which may be DTensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hekaton.config.sections import OptimizerSection
from hekaton.parameters import ParameterGroup
from hekaton.scaffold.templates.settings import OptimizerSettings


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a momentum (Chen et al., 2023, "Symbolic Discovery")."""

    def __init__(self, groups: Any, *, beta: float, momentum: float) -> None:
        super().__init__(groups, {"beta": beta, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients of the parameters; those without one stay as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                direction = state["average"].lerp(parameter.grad, 1 - group["beta"]).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction * -group["lr"])
                state["average"].lerp_(parameter.grad, 1 - group["momentum"])


def build(section: OptimizerSettings, settings: OptimizerSection, groups: Sequence[ParameterGroup]) -> Lion:
    """:param settings: the run's ``[optimizer]``; :param groups: of the parameters that are trained."""
    return Lion([group.as_torch() for group in groups], beta=settings.beta1, momentum=section.momentum)
