"""The converter ``quantize.grouped_mm.float8``: products of experts in float8, under the same names."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torchao.prototype.moe_training import _to_fp8_rowwise_then_scaled_grouped_mm

from hekaton.draft import Draft
from hekaton.expert_choices import choose_experts, replace_products
from hekaton.grouped_products import GroupedProduct, placed, rounded_product, spread, with_bias
from hekaton.mesh import ParallelDims
from hekaton_float8 import GROUPED
from hekaton_float8.blockwise import BLOCK, Blockwise, rounded
from hekaton_float8.sections import GroupedFloat8Section

ROWS = 16
"""The kernels of products by rows take groups of a multiple of so many."""


class GroupedFloat8:
    """Products of experts in float8, as the section says.

    A weight stays a parameter of the model's own precision under its own name.
    """

    def __init__(self, section: GroupedFloat8Section, dims: ParallelDims) -> None:
        self._section = section
        self._dims = dims

    def convert(self, draft: Draft) -> Draft:
        """:raises ConfigError: as :func:`hekaton.expert_choices.choose_experts`."""
        blockwise = self._section.recipe_name == "blockwise"
        choices = choose_experts(
            draft,
            self._section.fqns,
            field=f"{GROUPED}.fqns",
            multiple=BLOCK if blockwise else 16,
            etp=self._dims.etp,
        )
        product: GroupedProduct = functools.partial(float8_product, blockwise=blockwise)
        if self._section.emulate or not torch.cuda.is_available():
            product = functools.partial(
                rounded_product, number_format=Blockwise() if blockwise else Rowwise()
            )
        replace_products(draft.model, choices, lambda plain: product)
        return replace(draft, choices={**draft.choices, GROUPED: choices})


def float8_product(
    rows: torch.Tensor,
    weights: torch.Tensor,
    counts: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    blockwise: bool = False,
) -> torch.Tensor:
    """A :class:`~hekaton.grouped_products.GroupedProduct` by torchao's kernels, which give bfloat16.

    :param blockwise: scales of blocks, and not of rows.
    """
    multiply: Any = _to_fp8_rowwise_then_scaled_grouped_mm
    if blockwise:
        from torchao.prototype.moe_training.blockwise_fp8.grouped_mm import (
            _to_fp8_blockwise_then_scaled_grouped_mm as multiply,
        )
    place, ends, places = spread(counts, len(rows), BLOCK if blockwise else ROWS)
    out: torch.Tensor = multiply(
        placed(rows, place, places),
        weights.mT,
        offs=ends,
        out_dtype=torch.bfloat16,
        pad_token_groups_for_grouped_mm=False,
    )
    return with_bias(out.index_select(0, place).to(rows.dtype), bias, counts)


@dataclass(frozen=True)
class Rowwise:
    """E4M3 with a scale for each row that is a power of 2; see :class:`hekaton.grouped_products.Format`."""

    def along(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return rounded(x, x.abs().amax(dim, keepdim=True), power_of_2=True)

    def of_weights(self, weights: torch.Tensor, dim: int) -> torch.Tensor:
        return self.along(weights, dim)

    def along_groups(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        group = torch.arange(len(counts), device=x.device).repeat_interleave(counts, output_size=len(x))
        amax = x.new_zeros(len(counts), x.shape[1])
        amax = amax.scatter_reduce(0, group[:, None].expand_as(x), x.abs(), "amax")
        return rounded(x, amax.index_select(0, group), power_of_2=True)
