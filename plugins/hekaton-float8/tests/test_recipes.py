"""The emulated recipes against a reference in float64, written from the definition of the formats and of the recipes.

E4M3 and E5M2 as in Micikevicius et al., 2022, "FP8 Formats for Deep Learning", and the OCP specification "8-bit
Floating Point" 1.0: 3 and 2 bits of mantissa, the largest values 448 and 57,344, the smallest normal exponents
-6 and -14, rounding to nearest even, and here saturating. No code of torch's float8 or of torchao is used.
"""

import pytest
import torch
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_training_tensor import GemmInputRole, hp_tensor_and_scale_to_float8

from hekaton_float8.linear import as_torchao
from hekaton_float8.sections import Float8Section

FORMATS = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}
"""Name -> bits of mantissa, smallest exponent of a normal value, largest value."""


def rounded(x, name):
    """Each value to the nearest of the format, ties to even; beyond the largest, that."""
    bits, smallest, largest = FORMATS[name]
    exponent = torch.frexp(x)[1].double() - 1  # of a mantissa in [1, 2)
    step = 2.0 ** (exponent.clamp(min=smallest) - bits)
    return ((x / step).round() * step).clamp(-largest, largest)  # torch.round is to even


def cast(x, name, *, dim=None, power_of_2=False):
    """Scaled to the whole range of the format, rounded, and scaled back: one scale for all of ``x``, or one
    along ``dim``. Scales are kept in float32."""
    amax = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = (FORMATS[name][2] / amax.clamp(min=1e-12)).float().double()
    if power_of_2:
        scale = 2.0 ** torch.floor(torch.log2(scale))
    # The product with the scale is in the precision of the model, float32.
    return rounded((x * scale).float().double(), name) / scale


def linear(x, weight, upstream, recipe):
    """Outputs and gradients of ``x @ weight.T`` for the gradient ``upstream`` of the outputs.

    :param x: (tokens, inputs); :param weight: (outputs, inputs); :param upstream: (tokens, outputs)
    """
    if recipe == "tensorwise":
        cast_x, cast_w, cast_up = cast(x, "e4m3"), cast(weight, "e4m3"), cast(upstream, "e5m2")
        return cast_x @ cast_w.T, cast_up @ cast_w, cast_up.T @ cast_x
    output = cast(x, "e4m3", dim=1, power_of_2=True) @ cast(weight, "e4m3", dim=1, power_of_2=True).T
    up = cast(upstream, "e4m3", dim=1, power_of_2=True)
    if recipe == "rowwise_with_gw_hp":
        # For the gradient of the inputs, the weight has one scale.
        return output, up @ cast(weight, "e4m3", power_of_2=True), upstream.T @ x
    weight_along = cast(weight, "e4m3", dim=0, power_of_2=True)
    tokens = [cast(one, "e4m3", dim=0, power_of_2=True) for one in (upstream, x)]
    return output, up @ weight_along, tokens[0].T @ tokens[1]


TOLERANCE = 1e-5
"""Of outputs and gradients, relative: products are summed in float32."""
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")


def operands():
    """Input, weight and upstream gradient whose rows and columns differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 48, generator=generator) * torch.logspace(-3, 1, 64)[:, None]
    weight = torch.randn(32, 48, generator=generator) * torch.logspace(-4, 1, 48)
    return x, weight, torch.randn(64, 32, generator=generator) * torch.logspace(-6, 0, 32)


def computed(recipe):
    x, weight, upstream = operands()
    plain = torch.nn.Linear(48, 32, bias=False)
    plain.weight.data.copy_(weight)
    layer = Float8Linear.from_float(plain, config=as_torchao(Float8Section(recipe_name=recipe, emulate=True)))
    x.requires_grad_()
    output = layer(x)
    output.backward(upstream)
    return output.detach(), x.grad, layer.weight.grad


def errors(found, expected):
    """Of each tensor the largest relative error of a row."""
    pairs = zip(found, expected, strict=True)
    return [float(((a.double() - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in pairs]


@pytest.mark.parametrize("recipe", RECIPES)
def test_outputs_and_gradients_are_the_references(recipe):
    expected = linear(*(one.double() for one in operands()), recipe)
    assert max(errors(computed(recipe), expected)) < TOLERANCE


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_comparison_notices_another_recipe(recipe):
    """Scales of another axis, or of the whole where each row has one, are far outside the tolerance."""
    found = computed(recipe)
    for other in set(RECIPES) - {recipe}:
        assert max(errors(found, linear(*(one.double() for one in operands()), other))) > 1e-2
    x, weight, _ = (one.double() for one in operands())
    wrong_axis = cast(x, "e4m3", dim=0, power_of_2=True) @ cast(weight, "e4m3", dim=0, power_of_2=True).T
    assert errors(found[:1], [wrong_axis])[0] > 1e-2


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_values_are_rounded_to_even_and_saturated(name, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(2000, generator=generator) * 10.0**k for k in range(-9, 6)])
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    every = every[every.isfinite()].unique()
    values = torch.cat([values, every, (every[1:] + every[:-1]) / 2])  # the format's own, and ties
    assert values.abs().max() > 2 * FORMATS[name][2]
    config = as_torchao(Float8Section(emulate=True))
    mm = Float8Linear.from_float(torch.nn.Linear(16, 16), config=config).linear_mm_config
    found = hp_tensor_and_scale_to_float8(values, torch.tensor(1.0), dtype, mm, GemmInputRole.INPUT)
    assert torch.equal(found._data.double(), rounded(values.double(), name))
