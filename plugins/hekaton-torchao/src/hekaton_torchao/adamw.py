"""AdamW whose running means are kept in 8 bits (Dettmers et al., 2022), computed by torchao.

torchao's own optimizer keeps them as a class of tensors of its own, in blocks over each rank's part of a
parameter. Here they are plain tensors, and a block never leaves a row: codes and scales lie on the ranks as
their parameter does. So what is kept does not depend on the layout, and no code of torchao is needed to read
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchao.optim.adam import single_param_adam
from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

from hekaton.config.sections import OptimizerSection
from hekaton.errors import ConfigError
from hekaton.parameters import NamedParameter, ParameterGroup
from hekaton_torchao.sections import AdamW8bitSection

MEANS = {"exp_avg": True, "exp_avg_sq": False}
"""Name of a running mean -> whether it has a sign."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with the running means of large parameters in 8 bits; it computes in float32.

    :param params: parameter groups.
    :param block_size: values that share a scale; they are neighbours in a row.
    :param min_size: values of a parameter below which its means are kept in float32.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        block_size: int,
        min_size: int,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "block_size": block_size,
            "min_size": min_size,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in MEANS:
                state |= _zeros(name, parameter, group["block_size"], group["min_size"])
        state["step"] += 1
        values = _local(parameter)
        if values.numel() == 0:
            return
        means = [_mean(state, name, signed=signed) for name, signed in MEANS.items()]
        beta1, beta2 = group["betas"]
        _kernel(values.device.type)(
            values, _local(parameter.grad), state["step"], *means, None,
            torch.tensor(group["lr"], dtype=torch.float32), beta1, beta2, group["weight_decay"], group["eps"],
            True, False,
        )  # fmt: skip


def build(
    section: AdamW8bitSection, settings: OptimizerSection, groups: Sequence[ParameterGroup]
) -> torch.optim.Optimizer:
    """:raises ConfigError: for a parameter that is cut within a block."""
    for group in groups:
        for one in group.parameters:
            _check_cut(one, section)
    return AdamW8bit(
        [group.as_torch() for group in groups],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        block_size=section.block_size,
        min_size=section.min_size,
    )


def _in_8_bits(parameter: torch.Tensor, block_size: int, min_size: int) -> bool:
    return parameter.dim() > 1 and parameter.numel() >= min_size and parameter.shape[-1] % block_size == 0


def _check_cut(one: NamedParameter, section: AdamW8bitSection) -> None:
    parameter = one.parameter
    if not isinstance(parameter, DTensor) or not _in_8_bits(parameter, section.block_size, section.min_size):
        return
    last = parameter.dim() - 1
    ranks = 1
    for place, size in zip(parameter.placements, parameter.device_mesh.shape, strict=True):
        if getattr(place, "dim", None) == last:
            ranks *= size
    if parameter.shape[-1] % (ranks * section.block_size):
        raise ConfigError(
            f"AdamW8bit: the rows of '{one.name}', of {parameter.shape[-1]} values, are cut into {ranks} "
            f"parts, which are no whole blocks of {section.block_size}",
            hint="choose a smaller adamw_8bit.block_size, or another degree of parallelism",
            fields=["adamw_8bit.block_size"],
        )


def _zeros(name: str, parameter: torch.Tensor, block_size: int, min_size: int) -> dict[str, torch.Tensor]:
    """The state of one running mean that is 0."""
    if not _in_8_bits(parameter, block_size, min_size):
        return {name: torch.zeros_like(parameter, dtype=torch.float32)}
    codes = torch.zeros_like(parameter, dtype=torch.uint8)
    blocks: torch.Tensor = _local(codes).unflatten(-1, (-1, block_size))  # type: ignore[no-untyped-call]
    scales = torch.zeros(blocks.shape[:-1], device=codes.device)
    if isinstance(parameter, DTensor):
        shape = torch.Size([*parameter.shape[:-1], parameter.shape[-1] // block_size])
        stride = torch.empty(shape, device="meta").stride()
        scales = DTensor.from_local(
            scales, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
        )
    return {f"{name}_codes": codes, f"{name}_scales": scales}


def _mean(state: dict[str, torch.Tensor], name: str, *, signed: bool) -> torch.Tensor:
    """This rank's part of a running mean, as torchao computes with it; written to, it writes to the state."""
    if name in state:
        return _local(state[name])
    codes, scales = _local(state[f"{name}_codes"]), _local(state[f"{name}_scales"])
    made: torch.Tensor = OptimState8bit(
        codes, scales.view(-1), _table(signed, codes.device), signed, torch.float32
    )
    return made


@cache
def _table(signed: bool, device: torch.device) -> torch.Tensor:
    """The value of every code."""
    return torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned(), device=device)


@cache
def _kernel(device: str) -> Callable[..., None]:
    """torchao's update of one parameter; compiled for a GPU, a CPU would spend minutes on that."""
    update: Callable[..., None] = single_param_adam
    return torch.compile(update, fullgraph=True, dynamic=False) if device == "cuda" else update


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()
