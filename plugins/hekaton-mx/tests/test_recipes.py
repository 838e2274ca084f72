"""The emulated recipes against a reference in float64, written from the OCP specification "Microscaling Formats (MX)"
1.0, sections 5 and 6.3: blocks of 32, scales that are powers of 2, values in E4M3, to nearest even and saturating.

``floor`` is the scale of the specification, ``rceil`` that of cuBLAS, which is never too small for the largest value.
"""

import functools

import pytest
import torch
from torchao.prototype.moe_training import _to_mxfp8_then_scaled_grouped_mm
from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

from hekaton_mx import grouped
from hekaton_mx.linear import MXFP8Linear, recipe_of
from hekaton_mx.sections import GroupedMXSection, MXSection

LARGEST, LARGEST_EXPONENT = 448.0, 8


def grid(largest=LARGEST):
    """Every value of E4M3 from 0 on: 3 bits of mantissa, the smallest normal exponent -6."""
    small = [m / 8 * 2.0**-6 for m in range(8)]
    values = small + [(1 + m / 8) * 2.0**e for e in range(-6, 12) for m in range(8)]
    return torch.tensor([value for value in values if value <= largest], dtype=torch.float64)


def rounded(x, values):
    """Each value to the nearest of the grid, ties to the even one; beyond the largest, that."""
    above = torch.searchsorted(values, x.abs()).clamp(max=len(values) - 1)
    below = (above - 1).clamp(min=0)
    up, down = values[above] - x.abs(), x.abs() - values[below]
    return (
        torch.where((up < down) | ((up == down) & (above % 2 == 0)), values[above], values[below]) * x.sign()
    )


def cast(x, dim, mode, largest=LARGEST, of_part=False):
    """Scaled by blocks of 32 along ``dim``, the last of which may be shorter, rounded, and scaled back.

    :param of_part: the mistake that the largest value is that of the first half, before the two are compared.
    """
    blocks = []
    for block in x.double().split(32, dim):
        amax = (
            (block.narrow(dim, 0, (block.shape[dim] + 1) // 2) if of_part else block)
            .abs()
            .amax(dim, keepdim=True)
        )
        exponent = torch.frexp(amax)[1].double() - 1  # floor(log2(amax))
        if mode == "floor":
            exponent -= LARGEST_EXPONENT
        else:
            exponent = torch.log2(amax / LARGEST).ceil()
        scale = torch.where(amax > 0, 2.0 ** exponent.clamp(min=-127), 1.0)
        blocks.append(rounded(block / scale, grid(largest)) * scale)
    return torch.cat(blocks, dim)


def linear(x, weight, upstream, mode="rceil", wgrad_with_hp=False, wrong_axis=False, **mistake):
    """Outputs and gradients of ``x @ weight.T``: each product has its blocks along the dim that it sums over.

    :param x: (tokens, inputs); :param weight: (outputs, inputs); :param upstream: (tokens, outputs)
    """

    def summed_over(one, dim):
        return cast(one, 1 - dim if wrong_axis else dim, mode, **mistake)

    output = summed_over(x, 1) @ summed_over(weight, 1).T
    given = summed_over(upstream, 1) @ summed_over(weight, 0)
    if wgrad_with_hp:
        return output, given, upstream.double().T @ x.double()
    return output, given, summed_over(upstream, 0).T @ summed_over(x, 0)


def operands(tokens=64):
    """Input, weight and upstream gradient whose rows and columns differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 96, generator=generator) * torch.logspace(-3, 1, tokens)[:, None]
    weight = torch.randn(64, 96, generator=generator) * torch.logspace(-4, 1, 96)
    return x, weight, torch.randn(tokens, 64, generator=generator) * torch.logspace(-6, 0, 64)


def computed(tokens=64, **section):
    x, weight, upstream = operands(tokens)
    plain = torch.nn.Linear(96, 64, bias=False)
    plain.weight.data.copy_(weight)
    layer = MXFP8Linear(plain, recipe_of(MXSection(**section)))
    x.requires_grad_()
    output = layer(x.unflatten(0, (2, -1))).flatten(0, 1)
    output.backward(upstream)
    return output.detach(), x.grad, layer.weight.grad


def error(found, expected):
    """The largest relative error of a row of outputs or gradients."""
    pairs = zip(found, expected, strict=True)
    return max(float(((a.double() - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in pairs)


TOLERANCE = 1e-5
"""Relative: products are summed in float32."""


@pytest.mark.parametrize("tokens", [64, 40])
@pytest.mark.parametrize("mode", ["rceil", "floor"])
def test_outputs_and_gradients_are_the_references(mode, tokens):
    found = computed(tokens, scale_calculation_mode=mode)
    assert error(found, linear(*operands(tokens), mode)) < TOLERANCE


def test_gradients_of_weights_stay_in_their_precision_where_the_recipe_says_so():
    found = computed(recipe_name="mxfp8_rceil_wgrad_with_hp")
    assert error(found, linear(*operands(), wgrad_with_hp=True)) < TOLERANCE
    assert error(found, linear(*operands())) > 1e-2


@pytest.mark.parametrize(
    "mistake",
    [{"wrong_axis": True}, {"mode": "rceil"}, {"largest": 512.0}, {"of_part": True}],
    ids=lambda one: next(iter(one)),
)
def test_the_comparison_notices_a_mistake(mistake):
    """Scales of the wrong axis, scales that are rounded the other way, no saturation, and the largest value of a
    part of what shares a scale."""
    found = computed(scale_calculation_mode="floor")
    assert error(found, linear(*operands(), **{"mode": "floor", **mistake})) > 1e-3


COUNTS = [5, 0, 33, 26]
"""Rows of each expert: one has none, and none a multiple of 32."""


def expert_operands():
    """Rows, weights of four experts, and upstream gradient. The last row of the first expert is far larger than
    those after it, which are another's: in one block with it they would be subnormal."""
    x, weight, upstream = operands()
    x[4] *= 1e6
    upstream[4] *= 1e-6
    return x, weight * torch.logspace(-2, 2, 4)[:, None, None], upstream


def experts(mode, **mistake):
    """Outputs and gradients of each expert's product with its own rows; no weights' gradient of one without rows."""
    x, weights, upstream = expert_operands()
    parts = zip(x.split(COUNTS), weights, upstream.split(COUNTS), strict=True)
    each = [linear(rows, weight, up, mode, **mistake) for rows, weight, up in parts if len(rows)]
    return [torch.cat(one) for one in zip(*each, strict=True)]


def grouped_products(dtype=torch.float32, product=None, **section):
    x, weights, upstream = (one.to(dtype).requires_grad_() for one in expert_operands())
    product = product or grouped.product_of(GroupedMXSection(**section))
    output = product(x, weights, torch.tensor(COUNTS))
    output.backward(upstream)
    return output.detach(), x.grad, weights.grad[[0, 2, 3]].flatten(0, 1)


@pytest.mark.parametrize("mode", ["rceil", "floor"])
def test_products_of_experts_are_the_references(mode):
    assert error(grouped_products(scale_calculation_mode=mode), experts(mode)) < TOLERANCE
    precise = grouped_products(recipe_name="mxfp8_rceil_wgrad_with_hp", scale_calculation_mode=mode)
    assert error(precise, experts(mode, wgrad_with_hp=True)) < TOLERANCE
    assert error(precise, experts(mode)) > 1e-2


@pytest.mark.parametrize(
    "mistake",
    [{"wrong_axis": True}, {"mode": "rceil"}, {"largest": 512.0}, {"of_part": True}],
    ids=lambda one: next(iter(one)),
)
def test_the_comparison_of_experts_notices(mistake):
    found = grouped_products(scale_calculation_mode="floor")
    assert error(found, experts(**{"mode": "floor", **mistake})) > 1e-3


def test_blocks_that_two_experts_share_are_noticed(monkeypatch):
    """As of rows whose groups were not filled up to 32."""
    monkeypatch.setattr(grouped.MXFP8, "along_groups", lambda self, x, counts: self.along(x, 0))
    assert error(grouped_products()[2:], experts("rceil")[2:]) > 1e-3


def test_products_of_experts_are_those_that_torchao_emulates():
    """Bit for bit, in bfloat16: both round the same values."""
    theirs = functools.partial(
        _to_mxfp8_then_scaled_grouped_mm,
        kernel_preference=KernelPreference.EMULATED,
        pad_token_groups_for_grouped_mm=True,
    )
    found = grouped_products(torch.bfloat16)
    expected = grouped_products(
        torch.bfloat16,
        lambda x, weights, counts: theirs(x, weights.mT, offs=counts.cumsum(0, dtype=torch.int32)),
    )
    for ours, its in zip(found, expected, strict=True):
        assert torch.equal(ours, its)


def test_the_kernels_are_given_the_recipe(monkeypatch):
    """Here torchao's emulation takes their place."""
    monkeypatch.setattr(
        grouped,
        "_to_mxfp8_then_scaled_grouped_mm",
        functools.partial(_to_mxfp8_then_scaled_grouped_mm, kernel_preference=KernelPreference.EMULATED),
    )
    for section in ({}, {"recipe_name": "mxfp8_rceil_wgrad_with_hp", "scale_calculation_mode": "floor"}):
        emulated = grouped_products(torch.bfloat16, **section)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        found = grouped_products(torch.bfloat16, **section)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for ours, its in zip(found, emulated, strict=True):
            assert torch.equal(ours, its)
