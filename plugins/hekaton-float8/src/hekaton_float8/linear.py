"""The converter ``quantize.linear.float8``: linear layers become torchao's, under the same names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor
from torchao.float8 import Float8LinearConfig, precompute_float8_dynamic_scale_for_fsdp
from torchao.float8.float8_linear import Float8Linear

from hekaton.draft import Draft
from hekaton.layer_choices import choose_linear_layers, replace_layers
from hekaton.mesh import ParallelDims
from hekaton.product_linear import ProductLinear
from hekaton_float8 import LINEAR, blockwise
from hekaton_float8.sections import Float8Section
from hekaton_float8.tensor_parallel import read_only_by, with_float8_styles

MULTIPLE = 16
"""Products in float8 take outputs, inputs and rows in multiples of it."""


class LinearFloat8:
    """Products of linear layers in float8, as the section says.

    A weight stays a parameter of the model's own precision under its own name: checkpoints and exports are as
    without the converter.
    """

    def __init__(self, section: Float8Section, dims: ParallelDims) -> None:
        self._section = section
        self._dims = dims
        self._gathers = section.enable_fsdp_float8_all_gather and dims.dp_shard * dims.cp > 1

    def convert(self, draft: Draft) -> Draft:
        """:raises ConfigError: as :func:`hekaton.layer_choices.choose_linear_layers`."""
        recipe = self._section.recipe_name or "tensorwise"
        choices = choose_linear_layers(
            draft,
            self._section.filter_fqns,
            field=f"{LINEAR}.filter_fqns",
            multiple=blockwise.BLOCK if recipe == "blockwise" else MULTIPLE,
            tp=self._dims.tp,
            too_small=TOO_SMALL[recipe],
        )
        converted = {choice.layer for choice in choices if not choice.left}
        if self._dims.tp > 1 and recipe == "tensorwise" and draft.plan.tensor:
            draft = with_float8_styles(draft, converted, read_only_by(draft.model, converted))
        replace_layers(draft.model, choices, self._maker(recipe))
        return replace(draft, choices={**draft.choices, LINEAR: choices})

    def _maker(self, recipe: str) -> Callable[[nn.Linear], nn.Module]:
        """What makes the layer that takes the place of another one."""
        if recipe == "blockwise":
            emulated = self._section.emulate or not torch.cuda.is_available()
            product = blockwise.emulated_product if emulated else blockwise.product
            return lambda layer: ProductLinear(layer, product)
        config = as_torchao(self._section, gathers=self._gathers)
        return lambda layer: WholeRows.from_float(layer, config=config)

    def after_step(self, model_parts: Sequence[nn.Module]) -> None:
        """Compute the scales of all weights anew, where they are wanted ahead of the gather."""
        if self._gathers and self._section.precompute_float8_dynamic_scale_for_fsdp:
            for part in model_parts:
                precompute_float8_dynamic_scale_for_fsdp(part)


class WholeRows(Float8Linear):
    """torchao's layer, whose input is filled up with rows of 0 to a multiple of 16: the gradient of a weight
    sums over rows, and a product in float8 sums over such a multiple alone.

    Under tensor parallel inputs are as they come: a rule of the plugin refuses other numbers of tokens.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (..., inputs); :returns: (..., outputs)"""
        rows = x.shape[:-1].numel()
        if rows % MULTIPLE == 0 or isinstance(x, DTensor):
            whole: torch.Tensor = super().forward(x)
            return whole
        filled = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % MULTIPLE))
        out: torch.Tensor = super().forward(filled)
        return out[:rows].reshape(*x.shape[:-1], -1)


def as_torchao(section: Float8Section, *, gathers: bool = False) -> Float8LinearConfig:
    """torchao's configuration of the recipe; ``blockwise`` has none."""
    made: Float8LinearConfig = replace(
        Float8LinearConfig.from_recipe_name(section.recipe_name or "tensorwise"),
        enable_fsdp_float8_all_gather=gathers,
        emulate=section.emulate or not torch.cuda.is_available(),
    )
    return made


def _small_tensorwise(outputs: int, inputs: int) -> str:
    if inputs <= 4096 and outputs <= 1024:
        return f"{outputs} x {inputs} is too small to gain: at most 1024 x 4096"
    return ""


def _small_rowwise(outputs: int, inputs: int) -> str:
    if outputs <= 2048 or inputs <= 1024 or (outputs <= 4096 and inputs <= 2048):
        return f"{outputs} x {inputs} is too small to gain: 2048 outputs, 1024 inputs or 4096 x 2048 at most"
    return ""


TOO_SMALL = {
    "tensorwise": _small_tensorwise,
    "rowwise": _small_rowwise,
    # torchao has no measurements of these.
    "rowwise_with_gw_hp": _small_rowwise,
    "blockwise": _small_rowwise,
}
"""Recipe -> why a layer of so many outputs and inputs is too small to gain on an H100, or nothing: the bounds
of torchao's ``_auto_filter_for_recipe``."""
