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
    ``original_context / high_freq_factor`` are kept, those between are interpolated. Where both factors are
    the same, as in Llama 4 Scout, there is nothing between.

    Source: the Llama 3.1 reference implementation, ``apply_scaling``.
    """

    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    original_context: PositiveInt = 8192

    def __post_init__(self) -> None:
        if self.low_freq_factor > self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor = {self.low_freq_factor:g} is more than high_freq_factor = "
                f"{self.high_freq_factor:g}"
            )


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., 2023), with the two factors of attention that DeepSeek-V2 added.

    Pairs of channels that turn more than ``beta_fast`` times within ``original_context`` keep their
    wavelength, those that turn less than ``beta_slow`` times have it multiplied by ``factor``, and between
    the two the mix is linear in the number of the pair (section 3.2, equation 23).

    :param mscale: cosines and sines are multiplied by ``m(mscale) / m(mscale_all_dim)``, where ``m(x) = 0.1 *
        x * ln(factor) + 1``. With the defaults this is the paper's factor of equation 22.
    :param mscale_all_dim: the softmax scale is multiplied by ``m(mscale_all_dim)²``.
    :param truncate: the numbers of the first and the last pair that are mixed are made whole, as in the
        paper's implementation; gpt-oss does not.

    Source of both: ``yarn_get_mscale`` and ``softmax_scale`` in DeepSeek-V3's ``modeling_deepseek.py``.
    """

    factor: Annotated[float, Field(ge=1, le=1e6)]
    original_context: PositiveInt = 4096
    beta_fast: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    beta_slow: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    mscale: Annotated[float, Field(ge=0, le=100)] = 1.0
    mscale_all_dim: Annotated[float, Field(ge=0, le=100)] = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.beta_slow >= self.beta_fast:
            raise ConfigError(
                f"beta_slow = {self.beta_slow:g} must be less than beta_fast = {self.beta_fast:g}"
            )

    @property
    def rotary_factor(self) -> float:
        """Of cosines and sines."""
        return self._m(self.mscale) / self._m(self.mscale_all_dim)

    @property
    def softmax_factor(self) -> float:
        """Of the softmax scale."""
        return self._m(self.mscale_all_dim) ** 2

    def _m(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0

    def mixed(self, head_dim: int, theta: float) -> tuple[float, float]:
        """The numbers of the pairs where the mix begins and ends."""
        first, last = (
            head_dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        return first, last if last != first else last + 0.001


Scaling = RopeScaling | YarnScaling | None
"""How wavelengths are stretched, if they are."""


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Scaling, *, device: torch.device
) -> torch.Tensor:
    """Radians per position of each pair of channels: (head_dim / 2,), float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    if isinstance(scaling, YarnScaling):
        first, last = scaling.mixed(head_dim, theta)
        pairs = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
        stretched = ((pairs - first) / (last - first)).clamp(0.0, 1.0)
        return frequencies / scaling.factor * stretched + frequencies * (1.0 - stretched)
    turns = scaling.original_context * frequencies / (2 * math.pi)
    between = scaling.high_freq_factor - scaling.low_freq_factor
    if between:
        keep = ((turns - scaling.low_freq_factor) / between).clamp(0.0, 1.0)
    else:
        keep = (turns >= scaling.low_freq_factor).float()
    return frequencies * keep + frequencies / scaling.factor * (1.0 - keep)


def rotary_table(
    positions: torch.Tensor, head_dim: int, theta: float, scaling: Scaling = None
) -> torch.Tensor:
    """Cosines and sines of every position, times YaRN's factor.

    :param positions: (batch, seq) or (seq,), integers.
    :returns: (..., seq, 1, head_dim / 2, 2), float32; the last dim is (cos, sin).
    """
    frequencies = inverse_frequencies(head_dim, theta, scaling, device=positions.device)
    angles = positions.unsqueeze(-1).float() * frequencies
    table = torch.stack((angles.cos(), angles.sin()), dim=-1).unsqueeze(-3)
    return table * scaling.rotary_factor if isinstance(scaling, YarnScaling) else table


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
