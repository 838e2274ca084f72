"""torchao's kernels against the same recipe emulated on the same device."""

import functools

import pytest
import torch

from hekaton.grouped_products import rounded_product
from hekaton_float8 import blockwise, grouped
from hekaton_mx.grouped import product_of
from hekaton_mx.sections import GroupedMXSection

pytestmark = pytest.mark.cuda
COUNTS = (100, 0, 129, 27)


def passes(product, *shape):
    """The output of a product, and the gradients of what it was given."""
    generator = torch.Generator().manual_seed(0)
    x, weight, upstream = (
        torch.randn(*one, generator=generator).to("cuda", torch.bfloat16).requires_grad_()
        for one in ((256, 384), (*shape, 512, 384), (256, 512))
    )
    output = product(x, weight)
    output.backward(upstream.detach())
    return output.detach(), x.grad, weight.grad


def of_experts(product):
    return lambda x, weights: product(x, weights, torch.tensor(COUNTS, device=x.device))


def emulated(number_format):
    return of_experts(functools.partial(rounded_product, number_format=number_format))


RECIPES = {
    "blockwise": ((9, 0), (), lambda: blockwise.product, lambda: blockwise.emulated_product),
    "experts, rowwise": (
        (9, 0), (4,), lambda: of_experts(grouped.float8_product), lambda: emulated(grouped.Rowwise()),
    ),
    "experts, blockwise": (
        (9, 0), (4,), lambda: of_experts(functools.partial(grouped.float8_product, blockwise=True)), lambda: emulated(blockwise.Blockwise()),
    ),
    "experts, mxfp8": (
        (10, 0), (4,), lambda: of_experts(product_of(GroupedMXSection())),
        lambda: of_experts(product_of(GroupedMXSection(recipe_name="mxfp8_emulated_rceil"))),
    ),
}  # fmt: skip
"""What it needs, leading dims of weights, the kernels, the emulation."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_kernels_compute_what_is_emulated(recipe):
    needed, experts, kernels, emulation = RECIPES[recipe]
    if torch.cuda.get_device_capability() < needed:
        pytest.skip(f"needs a GPU of capability {needed}")
    for ours, expected in zip(passes(kernels(), *experts), passes(emulation(), *experts), strict=True):
        error = (ours.float() - expected.float()).norm() / expected.float().norm()
        assert error < 1e-2, error  # float8 itself is off by 4e-2
