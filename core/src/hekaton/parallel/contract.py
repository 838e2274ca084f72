"""What a model that is cut must keep to, and what is said when it does not."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hekaton.errors import ConfigError
from hekaton.objective import BatchTensor

PAGE = "docs/reference/models.md"

MISTAKES = (AttributeError, TypeError, KeyError, IndexError, ValueError, AssertionError, NotImplementedError)
"""What the forward of a model that was not written to be cut raises."""


def needed_inputs(model: nn.Module, declared: Sequence[BatchTensor]) -> list[BatchTensor]:
    """The inputs that a model cannot do without: optional ones where its forward has no default."""
    parameters = inspect.signature(model.forward).parameters
    required = {name for name, one in parameters.items() if one.default is inspect.Parameter.empty}
    return [one for one in declared if not one.optional or one.name in required]


def run_end(
    part: nn.Module,
    inputs: Sequence[torch.Tensor],
    others: Mapping[str, torch.Tensor],
    *,
    which: str,
    what: str,
) -> tuple[torch.Tensor, ...]:
    """Run one end of a pipeline, without its layers, on the meta device.

    :param inputs: of the forward, by position; :param others: by name.
    :param which: ``first`` or ``last``.
    :returns: what it gives.
    :raises ConfigError: when the model cannot be run so.
    """
    missing = [name for name, module in part._modules.items() if module is None]
    try:
        output = part(*inputs, **others)
    except (*MISTAKES, RuntimeError) as e:
        raise ConfigError(
            f"{what} cannot be a pipeline: its forward fails as the {which} stage, without "
            f"{', '.join([*missing, 'layers'])}: {described(e)}",
            hint=_STAGES,
        ) from e
    outputs = (output,) if isinstance(output, torch.Tensor) else output
    if not isinstance(outputs, tuple | list) or not all(isinstance(one, torch.Tensor) for one in outputs):
        raise ConfigError(
            f"{what} cannot be a pipeline: its {which} stage returns {type(output).__name__}, not tensors",
            hint=_STAGES,
        )
    return tuple(outputs)


_STAGES = (
    "later stages are given hidden states in place of tokens; the ends that a stage does not have are None, "
    f"and its layers are fewer ({PAGE}, Pipeline stages)"
)


def stage_failed(error: BaseException, *, stages: Sequence[int]) -> ConfigError | None:
    """What to raise instead of an error of ``torch.distributed.pipelining``, where a stage's forward made it.

    :param stages: those of this rank.
    """
    cause = error.__cause__
    if isinstance(cause, ConfigError):
        return cause
    if not isinstance(cause, MISTAKES):
        return None
    which = f"stage {stages[0]}" if len(stages) == 1 else f"one of stages {', '.join(map(str, stages))}"
    return ConfigError(
        f"the model's forward fails on {which} of the pipeline: {described(cause)}", hint=_STAGES
    )


def check_output(output: Any, expected: Sequence[torch.Tensor], *, stage: int) -> None:
    """:raises ConfigError: for an output of a stage that is not what the next one was told to expect."""
    outputs = output if isinstance(output, tuple | list) else (output,)
    found, wanted = (", ".join(map(_kind, tensors)) for tensors in (outputs, expected))
    if found != wanted:
        raise ConfigError(
            f"stage {stage} of the pipeline returns {found}, where the next one is to be given {wanted}",
            hint=f"layers must keep the shape and type of the hidden states ({PAGE}, Pipeline stages)",
        )


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def check_attention(name: str, inner: nn.Module, keywords: Sequence[str]) -> None:
    """Check that an inner attention can be called as a context-parallel strategy calls it.

    :param keywords: what it is given beside ``q``, ``k``, ``v`` and ``documents``.
    :raises ConfigError: naming what its forward does not take.
    """
    try:
        inspect.signature(inner.forward).bind(*range(4), **dict.fromkeys(keywords))
    except TypeError as e:
        raise ConfigError(
            f"'{name}' ({type(inner).__name__}) cannot attend under context parallel: its forward must take "
            f"(q, k, v, documents{''.join(f', {keyword}=' for keyword in keywords)}): {e}",
            hint=f"{PAGE}, Inner attention, says what they are",
        ) from e


def attention_failed(error: TypeError, inner: Collection[nn.Module]) -> ConfigError | None:
    """What to raise instead of an error, where the model called a replaced inner attention in another way."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    called = frame.f_locals.get("self")
    if frame.f_code.co_name != "_call_impl" or not any(called is module for module in inner):
        return None
    return ConfigError(
        f"the model calls its inner attention, {type(called).__name__}, with arguments that context parallel "
        f"does not know: {error}",
        hint=f"call it as inner(q, k, v, documents) ({PAGE}, Inner attention)",
    )


def described(error: BaseException) -> str:
    """An error of somebody's code in one line, with its place."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "/torch/" not in frame.filename] or list(frames)
    place = f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{place}"
