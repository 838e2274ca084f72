"""Rotary position embedding (Su et al., 2021), in the layouts of Meta's checkpoints and of transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from hekaton.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary wavelengths, for contexts longer than the one pretrained on.

    Wavelengths beyond ``original_context / low_freq_factor`` are multiplied by ``factor``, those below
    ``original_context / high_freq_factor`` are kept, those between are interpolated.

    Source: the Llama 3.1 reference implementation, ``apply_scaling``.
    """

    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    original_context: PositiveInt = 8192

    def __post_init__(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor = {self.low_freq_factor:g} must be less than high_freq_factor = "
                f"{self.high_freq_factor:g}"
            )


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, *, device: torch.device
) -> torch.Tensor:
    """Radians per position of each pair of channels: (head_dim / 2,), float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    turns = scaling.original_context * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return frequencies * keep + frequencies / scaling.factor * (1.0 - keep)


def rotary_table(
    positions: torch.Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> torch.Tensor:
    """Cosines and sines of every position.

    :param positions: (batch, seq) or (seq,), integers.
    :returns: (..., seq, 1, head_dim / 2, 2), float32; the last dim is (cos, sin).
    """
    frequencies = inverse_frequencies(head_dim, theta, scaling, device=positions.device)
    angles = positions.unsqueeze(-1).float() * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=-1).unsqueeze(-3)


def apply_rotary(x: torch.Tensor, table: torch.Tensor, *, halves: bool = False) -> torch.Tensor:
    """Rotate each pair of channels by its position's angle, in float32 or better.

    :param x: (batch, seq, heads, head_dim)
    :param table: from :func:`rotary_table`.
    :param halves: a pair is a channel of the first half and one of the second, the layout of GPT-NeoX and
        transformers, instead of two neighbours.
    :returns: like ``x``.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = table.unbind(-1)
    first, second = wide.chunk(2, dim=-1) if halves else wide.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = (first * cos - second * sin, first * sin + second * cos)
    whole = torch.cat(rotated, dim=-1) if halves else torch.stack(rotated, dim=-1).flatten(-2)
    return whole.type_as(x)
