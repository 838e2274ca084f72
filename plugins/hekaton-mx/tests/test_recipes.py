"""The emulated recipes against a reference in float64, written from the OCP specification "Microscaling Formats (MX)"
1.0, sections 5 and 6.3: blocks of 32, scales that are powers of 2, values in E4M3, to nearest even and saturating.

``floor`` is the scale of the specification, ``rceil`` that of cuBLAS, which is never too small for the largest value.
"""

import pytest
import torch

from hekaton_mx.linear import MXFP8Linear, recipe_of
from hekaton_mx.sections import MXSection

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


def cast(x, dim, mode, largest=LARGEST):
    """Scaled by blocks of 32 along ``dim``, the last of which may be shorter, rounded, and scaled back."""
    blocks = []
    for block in x.double().split(32, dim):
        amax = block.abs().amax(dim, keepdim=True)
        exponent = torch.frexp(amax)[1].double() - 1  # floor(log2(amax))
        if mode == "floor":
            exponent -= LARGEST_EXPONENT
        else:
            exponent = torch.log2(amax / LARGEST).ceil()
        scale = torch.where(amax > 0, 2.0 ** exponent.clamp(min=-127), 1.0)
        blocks.append(rounded(block / scale, grid(largest)) * scale)
    return torch.cat(blocks, dim)


def linear(x, weight, upstream, mode="rceil", wgrad_with_hp=False, wrong_axis=False, largest=LARGEST):
    """Outputs and gradients of ``x @ weight.T``: each product has its blocks along the dim that it sums over.

    :param x: (tokens, inputs); :param weight: (outputs, inputs); :param upstream: (tokens, outputs)
    """

    def summed_over(one, dim):
        return cast(one, 1 - dim if wrong_axis else dim, mode, largest)

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
    "mistake", [{"wrong_axis": True}, {"mode": "rceil"}, {"largest": 512.0}], ids=lambda one: next(iter(one))
)
def test_the_comparison_notices_a_mistake(mistake):
    """Scales of the wrong axis, scales that are rounded the other way, and no saturation."""
    found = computed(scale_calculation_mode="floor")
    assert error(found, linear(*operands(), **{"mode": "floor", **mistake})) > 1e-3
