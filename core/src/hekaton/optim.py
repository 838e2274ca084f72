"""Optimizers and learning-rate schedules by name, and the one gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from hekaton.errors import PluginError
from hekaton.parameters import REST, ParameterGroup

if TYPE_CHECKING:
    from hekaton.config.sections import LRSchedulerSection, OptimizerSection


class _OnShards(torch.optim.Optimizer):
    """Computes on each rank's own part of the parameters, gradients and moments.

    Every number of Adam depends on the others at its place alone, so that a rank needs to know of no other,
    and the cost of DTensor's dispatch, which grows with the number of tensors, falls away. The state stays
    DTensors.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[misc]
        parameters, gradients = lists[:2]
        gradients[:] = [_placed_like(*pair) for pair in zip(gradients, parameters, strict=True)]
        for tensors in lists:
            tensors[:] = [local(tensor) for tensor in tensors]
        return has_complex


class AdamW(_OnShards, torch.optim.AdamW):
    """torch's AdamW, on each rank's part of sharded parameters."""


class Adam(_OnShards, torch.optim.Adam):
    """torch's Adam, on each rank's part of sharded parameters."""


def adamw(
    section: Any, settings: OptimizerSection, groups: Sequence[ParameterGroup]
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019); weight decay applies to every parameter of a group."""
    return AdamW([group.as_torch() for group in groups], **_adam_settings(settings))


def adam(section: Any, settings: OptimizerSection, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, 2015); weight decay is added to the gradient."""
    return Adam([group.as_torch() for group in groups], **_adam_settings(settings))


def _adam_settings(settings: OptimizerSection) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
        "fused": settings.implementation == "fused",
        "foreach": settings.implementation == "foreach",
    }


_DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def warmup_stable_decay(
    section: Any, settings: LRSchedulerSection, training_steps: int
) -> Callable[[int], float]:
    """Linear warmup, a constant stretch, then decay to ``min_lr_factor`` (WSD; Hu et al., 2024, MiniCPM).

    The decay takes ``decay_ratio`` of the steps; when not set, all that follow the warmup. The factor reaches
    ``min_lr_factor`` one step after the last, so that no step is spent at a rate of 0.
    """
    warmup = settings.warmup_steps
    decay = training_steps - warmup
    if settings.decay_ratio is not None:
        decay = min(decay, round(training_steps * settings.decay_ratio))
    decay_start = training_steps + 1 - decay
    shape = _DECAYS[settings.decay_type]

    def factor(steps_done: int) -> float:
        step = steps_done + 1
        if step <= warmup:
            return step / warmup
        if step < decay_start:
            return 1.0
        progress = min(1.0, (step - decay_start) / decay) if decay > 0 else 0.0
        return settings.min_lr_factor + (1.0 - settings.min_lr_factor) * shape(progress)

    return factor


class LearningRate:
    """Sets the learning rate of every parameter group to its initial one times the schedule's factor."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        factor: Callable[[int], float],
        *,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """:param rates: group of the whole model -> its rate before the factor, for :meth:`report`."""
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group in self._groups:
            group["initial_lr"] = float(group["lr"])
        self._factor = factor
        self._rates = rates or {}
        self._last = 1.0
        self.steps_done = 0

    def apply(self) -> float:
        """Set the rate for the step to come, and return the schedule's factor.

        :raises PluginError: for a factor that is no finite number, or below 0.
        """
        factor = self._factor(self.steps_done)
        if not isinstance(factor, Real) or not math.isfinite(factor) or factor < 0:
            raise PluginError(
                f"the learning-rate schedule's factor after {self.steps_done:,} steps is {factor!r}",
                hint="it gives a finite number from 0 on",
            )
        self._last = float(factor)
        for group in self._groups:
            rate = group["initial_lr"] * self._last
            if isinstance(group["lr"], torch.Tensor):  # of an optimizer whose step is compiled
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return self._last

    def report(self) -> dict[str, float]:
        """``lr``, and where there are several groups each one's rate as ``lr/NAME``, of the last step; of all
        groups of the model, whichever of its stages this rank runs."""
        rates = {name: rate * self._last for name, rate in self._rates.items()}
        others = {f"lr/{name}": rate for name, rate in rates.items() if name != REST}
        return {"lr": rates[REST], **others}


def _placed_like(gradient: Any, parameter: Any) -> Any:
    if not hasattr(gradient, "placements") or gradient.placements == parameter.placements:
        return gradient
    return gradient.redistribute(parameter.device_mesh, parameter.placements)


def local(tensor: Any) -> torch.Tensor:
    """This rank's part of a DTensor, or a plain tensor as it is; detached, in the same memory."""
    mine: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return mine.detach()


def clip_grad_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, *, pipeline: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Scale gradients so that their global 2-norm is at most ``max_norm``; 0 only measures it.

    :param parameters: those of this rank, frozen ones too, plain or on any mix of meshes.
    :param pipeline: the ranks that hold the other stages' parameters.
    :returns: the norm before clipping, a scalar, the same on every rank.
    """
    from torch.distributed.tensor import DTensor

    groups: dict[Any, list[torch.Tensor]] = {}
    parameters = list(parameters)
    for parameter in parameters:
        if (grad := parameter.grad) is None:
            continue
        groups.setdefault(grad.device_mesh if isinstance(grad, DTensor) else None, []).append(grad)
    norms = []
    for grads in groups.values():
        norm = nn.utils.get_total_norm(grads)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not norms:  # every parameter of this rank is frozen; other ranks send norms of this kind
        norms.append(next((one.new_zeros(()) for one in map(local, parameters)), torch.zeros(())))
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if pipeline is not None and pipeline.size() > 1:
        squared = total.square()
        dist.all_reduce(squared, group=pipeline)
        total = squared.sqrt()
    if max_norm > 0:
        for grads in groups.values():
            scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
            torch._foreach_mul_(
                [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads],
                scale.to(grads[0].device),
            )
    return total
