"""The state of a run as named tensors, and back: model, optimizers, random numbers."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hekaton.errors import CheckpointError
from hekaton.precision import in_precision
from hekaton.weights.table import listed

Tensors = dict[str, torch.Tensor]

_SCALARS = (bool, int, float, str)
_VALUES = "values"
_UNSTARTED = "unstarted"


def model_tensors(parts: Sequence[nn.Module]) -> Tensors:
    """Parameters and persistent buffers by their names; a tied tensor once, under the first of its names.

    The tensors are the live ones: loading into them loads the model.
    """
    tensors: Tensors = {}
    seen: set[int] = set()
    for part in parts:
        for name, tensor in part.state_dict(keep_vars=True).items():
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    f"the model keeps '{name}' as {type(tensor).__name__}: checkpoints hold tensors only",
                    hint="make it a buffer, or leave it out of the state dict",
                )
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor
    return tensors


def stored_tensors(parts: Sequence[nn.Module]) -> Tensors:
    """As :func:`model_tensors`, each as a plain tensor or a DTensor of plain ones that has its memory: a
    converter may wrap parameters in a class of its own, which no checkpoint names.

    :raises CheckpointError: for a class that has no plain tensor of the same shape and type.
    """
    return {name: _unwrapped(name, tensor) for name, tensor in model_tensors(parts).items()}


@torch.no_grad()
def _unwrapped(name: str, tensor: torch.Tensor) -> torch.Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    shape, dtype = local.shape, local.dtype
    if not is_traceable_wrapper_subclass(local):
        return tensor
    inner: list[torch.Tensor] = [getattr(local, attribute) for attribute in local.__tensor_flatten__()[0]]
    plain = [one for one in inner if one.shape == shape and one.dtype == dtype]
    if len(plain) != 1:
        raise CheckpointError(
            f"the model keeps '{name}' as {type(local).__name__}: checkpoints hold plain tensors only",
            hint="a class that wraps a parameter holds one tensor of its shape and type",
        )
    if not isinstance(tensor, DTensor):
        return plain[0].detach()
    return DTensor.from_local(
        plain[0].detach(), tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape,
        stride=tensor.stride(),
    )  # fmt: skip


def lacking_elsewhere(parts: Sequence[nn.Module], stored: Collection[str], *, what: str) -> set[str]:
    """The buffers that a checkpoint with tensors of these names does not have, and need not: a module names
    what other programs may do without in ``optional_buffers``. They stay as they are in a new model.

    :param what: the checkpoint, for messages.
    :raises CheckpointError: where it has one that the model is configured to be without.
    """
    lacking, unknown = set(), {}
    for part in parts:
        for prefix, module in part.named_modules():
            for buffer, field in getattr(module, "optional_buffers", {}).items():
                name = f"{prefix}.{buffer}" if prefix else buffer
                there, here = name in stored, module._buffers.get(buffer) is not None
                if here and not there:
                    lacking.add(name)
                if there and not here:
                    unknown[name] = field
    if unknown:
        fields = ", ".join(f"model.overrides.{field}" for field in dict.fromkeys(unknown.values()))
        raise CheckpointError(
            f"{what} has tensors that the model is configured to be without: {listed(unknown)}",
            hint=f"set {fields}",
        )
    return lacking


@torch.no_grad()
def converted(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The tensors with those of floating point in another precision.

    :raises CheckpointError: for a value in this rank's shard that the precision has no number for.
    """
    return {name: _converted(name, tensor, dtype) for name, tensor in tensors.items()}


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return in_precision(tensor.detach(), dtype, what=name)
    return DTensor.from_local(
        in_precision(tensor.to_local(), dtype, what=name),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


@torch.no_grad()
def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity in this rank's shard.

    A sum is finite only where all values are, and costs one pass over memory. One that is not is looked at
    again: it may have overflowed.
    """
    shards = {
        name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    wide = {name: shard.float() if shard.itemsize == 1 else shard for name, shard in shards.items()}
    sums = [shard.sum(dtype=torch.promote_types(shard.dtype, torch.float32)) for shard in wide.values()]
    if not sums or bool(torch.stack([one.double() for one in sums]).isfinite().all()):
        return []
    return [name for name, shard in wide.items() if not bool(shard.isfinite().all())]


def optimizer_state(
    parts: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[Tensors, dict[str, Any]]:
    """The state of the optimizers, by name of parameter; nothing about them is changed.

    Where a parameter has none yet (before the first step, or because it has had no gradient), fresh state
    stands in, so that what a checkpoint holds depends on the model and the kind of optimizer only. Learning
    rates and other hyperparameters are not state: they come from the configuration and the schedule.

    :returns: tensors as ``layers.0.attention.wq.weight.exp_avg``, the live ones where there are any, and a
        JSON dict of the rest.
    """
    tensors: Tensors = {}
    values: dict[str, Any] = {}
    unstarted: dict[str, bool] = {}
    for name, parameter, optimizer, group in _optimized(parts, optimizers):
        state = optimizer.state.get(parameter)
        if not state:
            state = _fresh_state(optimizer, group, parameter)
            if state:
                unstarted[name] = True
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}.{key}"] = value
            elif value is None or isinstance(value, _SCALARS):
                values[f"{name}.{key}"] = value
            else:
                raise CheckpointError(
                    f"{type(optimizer).__name__} keeps '{key}' of '{name}' as {type(value).__name__}: "
                    "checkpoints hold tensors, numbers and strings",
                )
    return tensors, {_VALUES: values, _UNSTARTED: unstarted}


def restore_optimizers(
    parts: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
    rest: Mapping[str, Any],
) -> None:
    """Give the optimizers the state that was loaded.

    :param tensors: what :func:`optimizer_state` returned in this run, filled by loading.
    :param rest: the JSON dict that it returned in the run that saved.
    """
    states: dict[str, dict[str, Any]] = defaultdict(dict)
    for source in (tensors, rest[_VALUES]):
        for full_key, value in source.items():
            name, key = full_key.rsplit(".", 1)
            states[name][key] = value
    for name, parameter, optimizer, _ in _optimized(parts, optimizers):
        if name in rest[_UNSTARTED] or name not in states:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = states[name]


def rng_tensors(rank: int) -> Tensors:
    """Copies of the states of this rank's random-number generators, CPU and current CUDA device."""
    tensors = {f"rank_{rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"rank_{rank}.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore_rng(tensors: Mapping[str, torch.Tensor]) -> None:
    """Set this rank's generators to states that :func:`rng_tensors` named and loading filled.

    :raises CheckpointError: when they are not states of generators.
    """
    for name, state in tensors.items():
        try:
            if name.endswith(".cuda"):
                torch.cuda.set_rng_state(state)
            else:
                torch.set_rng_state(state)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint's 'rng.{name}' is not the state of a random-number generator",
                hint='resume without it: checkpoint.exclude_from_loading = ["rng"]',
            ) from error


def check_info(info: Mapping[str, Any]) -> None:
    """Check the types of what a manifest holds of optimizers, schedule and data.

    :raises ValueError: when it is not what a run saves.
    """
    optimizer, schedule, data = (info.get(name) for name in ("optimizer", "lr_scheduler", "data_loader"))
    if "optimizer" in info and not (
        isinstance(optimizer, Mapping)
        and optimizer.keys() == {_VALUES, _UNSTARTED}
        and all(isinstance(part, Mapping) for part in optimizer.values())
        and all("." in name for name in optimizer[_VALUES])
        and all(value is None or isinstance(value, _SCALARS) for value in optimizer[_VALUES].values())
    ):
        raise ValueError("what it says of the optimizer is not what a run saves")
    if "lr_scheduler" in info and not (
        isinstance(schedule, Mapping)
        and type(schedule.get("steps_done")) is int
        and schedule["steps_done"] >= 0
    ):
        raise ValueError("what it says of the learning rate is not what a run saves")
    if "data_loader" in info and not (
        isinstance(data, Mapping) and all(isinstance(value, _SCALARS) for value in data.values())
    ):
        raise ValueError("what it says of the data is not what a run saves")
    if "bad_steps" in info and not _is_of_bad_steps(info["bad_steps"]):
        raise ValueError("what it says of bad steps is not what a run saves")


def _is_of_bad_steps(said: Any) -> bool:
    return (
        isinstance(said, Mapping)
        and all(
            type(said.get(name)) is int and said[name] >= 0 for name in ("in_a_row", "furthest", "equal_at")
        )
        and isinstance(said.get("losses"), list)
        and all(type(loss) is float and math.isfinite(loss) for loss in said["losses"])
    )


def _optimized(
    parts: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer, dict[str, Any]]]:
    """Each trained parameter: its name, itself, its optimizer, its group there."""
    # By state_dict(), and not named_parameters(): FSDP brings parameters back to their shards for it.
    names = {id(tensor): name for name, tensor in model_tensors(parts).items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    yield names[id(parameter)], parameter, optimizer, group


def _fresh_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> dict[str, Any]:
    """The state that the optimizer makes for a parameter at its first step.

    A twin of the optimizer, without its hooks, takes that step on a stand-in of the parameter: neither the
    optimizer nor its schedule nor any weight notices.
    """
    stand_in = torch.zeros_like(parameter, requires_grad=True)
    stand_in.grad = torch.zeros_like(parameter)
    twin = object.__new__(type(optimizer))
    vars(twin).update(vars(optimizer))
    vars(twin).pop("step", None)  # a scheduler's wrapper, bound to the original
    twin.state = defaultdict(dict)
    twin.param_groups = [{**group, "params": [stand_in]}]
    twin._optimizer_step_pre_hooks = OrderedDict()
    twin._optimizer_step_post_hooks = OrderedDict()
    twin.step()
    return dict(twin.state[stand_in])
