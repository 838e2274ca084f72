"""The converter ``quantize.linear.mx``: products of linear layers in MXFP8 or NVFP4, under the same names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torchao.prototype.moe_training.mxfp8_linear import _to_mxfp8_then_scaled_mm
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

from hekaton.draft import Draft
from hekaton.layer_choices import choose_linear_layers, replace_layers
from hekaton.mesh import ParallelDims
from hekaton.product_linear import ProductLinear
from hekaton_mx import LINEAR, nvfp4
from hekaton_mx.sections import MXSection

BLOCK = 32
"""Neighbouring values that share a scale."""


class LinearMX:
    """Products of linear layers in MXFP8 or NVFP4, as the section says.

    A weight stays a parameter of the model's own precision under its own name: checkpoints and exports are as
    without the converter.
    """

    def __init__(self, section: MXSection, dims: ParallelDims) -> None:
        self._section = section
        self._dims = dims

    def convert(self, draft: Draft) -> Draft:
        """:raises ConfigError: as :func:`hekaton.layer_choices.choose_linear_layers`."""
        choices = choose_linear_layers(
            draft,
            self._section.filter_fqns,
            field=f"{LINEAR}.filter_fqns",
            multiple=nvfp4.MULTIPLE if is_nvfp4(self._section) else BLOCK,
            tp=self._dims.tp,
            too_small=lambda outputs, inputs: "",
        )
        replace_layers(draft.model, choices, self._maker())
        return replace(draft, choices={**draft.choices, LINEAR: choices})

    def _maker(self) -> Callable[[nn.Linear], nn.Module]:
        """What makes the layer that takes the place of another one."""
        recipe = recipe_of(self._section)
        if is_nvfp4(self._section):
            multiply = nvfp4.emulated_product if recipe.emulated else nvfp4.product
            return lambda layer: ProductLinear(layer, multiply)
        return lambda layer: MXFP8Linear(layer, recipe)


def is_nvfp4(section: MXSection) -> bool:
    """Whether products are in NVFP4."""
    return section.recipe_name.startswith("nvfp4")


@dataclass(frozen=True)
class Recipe:
    """How MXFP8 is multiplied.

    :param emulated: round to it, and multiply in float32 or bfloat16.
    :param wgrad_with_hp: compute gradients of weights in their own precision.
    """

    emulated: bool
    scales: ScaleCalculationMode
    wgrad_with_hp: bool


def recipe_of(section: MXSection) -> Recipe:
    """The recipe that a section names."""
    return Recipe(
        emulated="emulated" in section.recipe_name or not torch.cuda.is_available(),
        scales=ScaleCalculationMode(section.scale_calculation_mode),
        wgrad_with_hp="wgrad_with_hp" in section.recipe_name,
    )


def product(x: torch.Tensor, weight: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """``x @ weight.T`` in MXFP8, as are the products of its backward.

    :param x: (..., inputs); :param weight: (outputs, inputs)
    :returns: (..., outputs), in the precision of ``x``; what is float64 is multiplied as float32.
    """
    rows = x.flatten(0, -2)
    # In the gradient of the weight, 32 neighbouring rows share a scale: rows of 0 fill up the last block.
    rows = F.pad(rows, (0, 0, 0, -len(rows) % BLOCK))
    if x.dtype == torch.float64:
        rows, weight = rows.float(), weight.float()
    out: torch.Tensor = _to_mxfp8_then_scaled_mm(
        rows,
        weight,
        kernel_preference=KernelPreference.EMULATED if recipe.emulated else KernelPreference.AUTO,
        scale_calculation_mode=recipe.scales,
        wgrad_with_hp=recipe.wgrad_with_hp,
    )
    return out[: x.shape[:-1].numel()].unflatten(0, x.shape[:-1]).to(x.dtype)


class MXFP8Linear(ProductLinear):
    """A linear layer whose products are in MXFP8, with the parameters of the one that it replaces."""

    def __init__(self, layer: nn.Linear, recipe: Recipe) -> None:
        super().__init__(layer, functools.partial(product, recipe=recipe))
        self.recipe = recipe

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.recipe}"
