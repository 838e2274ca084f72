"""The emulated recipes against a reference in float64, written from the definition of the formats and of the recipes.

E4M3 and E5M2 as in Micikevicius et al., 2022, "FP8 Formats for Deep Learning", and the OCP specification "8-bit
Floating Point" 1.0: 3 and 2 bits of mantissa, the largest values 448 and 57,344, the smallest normal exponents
-6 and -14, rounding to nearest even, and here saturating. No code of torch's float8 or of torchao is used.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torchao.float8 import float8_training_tensor, float8_utils
from torchao.float8.config import ScalingGranularity
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_training_tensor import GemmInputRole, hp_tensor_and_scale_to_float8

from hekaton.grouped_products import rounded_product
from hekaton_float8 import blockwise, grouped
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_largest_value_of_a_part_is_noticed(recipe, monkeypatch):
    """As of the part that one of two ranks has, before it is reduced."""
    amax_of = float8_utils.tensor_to_amax

    def of_a_part(
        x, reduce_amax=False, device_mesh=None, granularity=ScalingGranularity.TENSORWISE, dim=None
    ):
        part = x.chunk(2, -1 if dim is None else dim)[0]
        return amax_of(part, reduce_amax, device_mesh, granularity, dim)

    monkeypatch.setattr(float8_utils, "tensor_to_amax", of_a_part)
    expected = linear(*(one.double() for one in operands()), recipe)
    assert max(errors(computed(recipe), expected)) > 1e-2


def test_values_that_are_not_saturated_are_noticed(monkeypatch):
    """Of a scale that is not of these values, as one that was computed ahead."""

    def beyond_is_nan(x, dtype):
        return torch.where(x.abs() > torch.finfo(dtype).max, torch.nan, x).to(dtype)

    monkeypatch.setattr(float8_training_tensor, "to_fp8_saturated", beyond_is_nan)
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        values = torch.tensor([1.0, 2 * FORMATS[name][2]])
        assert not torch.equal(in_float8(values, dtype), rounded(values.double(), name))


def in_float8(values, dtype):
    """With a scale of 1."""
    config = as_torchao(Float8Section(emulate=True))
    mm = Float8Linear.from_float(torch.nn.Linear(16, 16), config=config).linear_mm_config
    found = hp_tensor_and_scale_to_float8(values, torch.tensor(1.0), dtype, mm, GemmInputRole.INPUT)
    return found._data.double()


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_values_are_rounded_to_even_and_saturated(name, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(2000, generator=generator) * 10.0**k for k in range(-9, 6)])
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    every = every[every.isfinite()].unique()
    values = torch.cat([values, every, (every[1:] + every[:-1]) / 2])  # the format's own, and ties
    assert values.abs().max() > 2 * FORMATS[name][2]
    assert torch.equal(in_float8(values, dtype), rounded(values.double(), name))


COUNTS = [5, 0, 33, 26]
"""Rows of each expert: one has none, and none a multiple of 16."""


def expert_operands():
    """Rows, weights of four experts, and upstream gradient, in orders of magnitude that the experts differ in too.

    Powers of 2 move nothing but what is subnormal: one input is far larger than the others, with weights of 0.
    """
    x, weight, upstream = operands()
    x[:, -1] *= 1e5
    weight[:, -1] = 0
    return x, weight * torch.logspace(-2, 2, 4)[:, None, None], upstream


def experts(x, weights, upstream, cast=cast):
    """Outputs and gradients of each expert's product with its own rows, in the recipe ``rowwise``.

    :param cast: in place of :func:`cast`, with a mistake.
    """
    output, given, of_weights = [], [], []
    parts = zip(x.split(COUNTS), weights, upstream.split(COUNTS), strict=True)
    for rows, weight, up in parts:
        if not len(rows):
            of_weights.append(torch.zeros_like(weight))
            continue
        output.append(
            cast(rows, "e4m3", dim=1, power_of_2=True) @ cast(weight, "e4m3", dim=1, power_of_2=True).T
        )
        given.append(cast(up, "e4m3", dim=1, power_of_2=True) @ cast(weight, "e4m3", dim=0, power_of_2=True))
        tokens = [cast(one, "e4m3", dim=0, power_of_2=True) for one in (up, rows)]
        of_weights.append(tokens[0].T @ tokens[1])
    return torch.cat(output), torch.cat(given), torch.cat(of_weights)


EMULATED = functools.partial(rounded_product, number_format=grouped.Rowwise())


def grouped_products(product=EMULATED):
    x, weights, upstream = (one.requires_grad_() for one in expert_operands())
    output = product(x, weights, torch.tensor(COUNTS))
    output.backward(upstream)
    return output.detach(), x.grad, weights.grad.flatten(0, 1)


def test_products_of_experts_are_the_references():
    found = grouped_products()
    expected = experts(*(one.double() for one in expert_operands()))
    of_idle = found[2].unflatten(0, (4, -1))[COUNTS.index(0)]
    assert not of_idle.any()
    assert max(errors(used(found), used(expected))) < TOLERANCE


def used(tensors):
    """Without the gradients of the expert that has no rows, which are 0."""
    output, given, of_weights = tensors
    return output, given, of_weights.unflatten(0, (4, -1))[[0, 2, 3]].flatten(0, 1)


def of_the_other_axis(x, name, *, dim, power_of_2):
    return cast(x, name, dim=1 - dim, power_of_2=power_of_2)


def of_a_part(x, name, *, dim, power_of_2):
    """The largest value of each half, as before the halves of two ranks are put together."""
    return torch.cat([cast(part, name, dim=dim, power_of_2=power_of_2) for part in x.chunk(2, dim)], dim)


def rounded_up(x, name, *, dim, power_of_2):
    """Scales that are rounded up, so that the largest values saturate."""
    scale = 2.0 ** torch.ceil(torch.log2(FORMATS[name][2] / x.abs().amax(dim, keepdim=True)))
    return rounded(x * scale, name) / scale


def beyond_the_largest(x, name, *, dim, power_of_2):
    """The same without saturation: E4M3 has no more values there, and gives NaN."""
    scale = 2.0 ** torch.ceil(torch.log2(FORMATS[name][2] / x.abs().amax(dim, keepdim=True)))
    return torch.where((x * scale).abs() > FORMATS[name][2], torch.nan, rounded(x * scale, name)) / scale


@pytest.mark.parametrize("mistake", [of_the_other_axis, of_a_part, rounded_up, beyond_the_largest])
def test_the_comparison_of_experts_notices(mistake):
    wrong = experts(*(one.double() for one in expert_operands()), cast=mistake)
    assert not max(errors(used(grouped_products()), used(wrong))) < 1e-3


def test_scales_that_two_experts_share_are_noticed(monkeypatch):
    monkeypatch.setattr(grouped.Rowwise, "along_groups", lambda self, x, counts: self.along(x, 0))
    expected = experts(*(one.double() for one in expert_operands()))
    assert errors(used(grouped_products())[2:], used(expected)[2:])[0] > 1e-3


def in_blocks(x, rows, columns):
    """Rounded with a scale for each so many rows and columns; the last block may be smaller."""
    out = torch.empty_like(x)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            out[i : i + rows, j : j + columns] = cast(x[i : i + rows, j : j + columns], "e4m3")
    return out


def blockwise_linear(x, weight, upstream, *, of_rows=(1, 128), of_weight=(128, 128)):
    """As :func:`linear`, in DeepSeek V3's recipe.

    :param of_rows: what shares a scale in a matrix whose columns are summed over; :param of_weight: in a weight.
    """
    w, up, tall = in_blocks(weight, *of_weight), in_blocks(upstream, *of_rows), of_rows[::-1]
    return in_blocks(x, *of_rows) @ w.T, up @ w, in_blocks(upstream, *tall).T @ in_blocks(x, *tall)


def blockwise_operands():
    """40 tokens, 128 outputs of 256 inputs; as :func:`operands`, in orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 256, generator=generator) * torch.logspace(-3, 1, 40)[:, None]
    weight = torch.randn(128, 256, generator=generator) * torch.logspace(-4, 1, 256)
    return x, weight, torch.randn(40, 128, generator=generator) * torch.logspace(-6, 0, 128)


def test_blockwise_products_are_the_references():
    x, weight, upstream = (one.requires_grad_() for one in blockwise_operands())
    output = blockwise.emulated_product(x.unflatten(0, (2, -1)), weight).flatten(0, 1)
    output.backward(upstream)
    found = output.detach(), x.grad, weight.grad
    exact = [one.detach().double() for one in (x, weight, upstream)]
    assert max(errors(found, blockwise_linear(*exact))) < TOLERANCE
    for mistake in ({"of_rows": (128, 1)}, {"of_weight": (1, 128)}, {"of_rows": (128, 128)}):
        assert max(errors(found, blockwise_linear(*exact, **mistake))) > 1e-2, mistake


def test_blockwise_products_of_experts_are_the_references():
    """Each expert's own rows, of which the blocks begin anew."""
    x, weight, upstream = blockwise_operands()
    counts = [13, 0, 27]
    weights = weight * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    x, weights, upstream = (one.requires_grad_() for one in (x, weights, upstream))
    output = rounded_product(x, weights, torch.tensor(counts), number_format=blockwise.Blockwise())
    output.backward(upstream)
    exact = [one.detach().double() for one in (x, weights, upstream)]
    parts = zip(exact[0].split(counts), exact[1], exact[2].split(counts), strict=True)
    expected = [
        torch.cat(one)
        for one in zip(*(blockwise_linear(*part) for part in parts if len(part[0])), strict=True)
    ]
    found = output.detach(), x.grad, weights.grad[[0, 2]].flatten(0, 1)
    assert max(errors(found, expected)) < TOLERANCE


def test_groups_are_filled_up_for_the_kernels(monkeypatch):
    """Which take groups of a multiple of 16 rows; a product of plain values stands for them here."""
    ends_of = []

    def kernel(rows, weights, *, offs, out_dtype, pad_token_groups_for_grouped_mm):
        assert not pad_token_groups_for_grouped_mm
        assert not len(rows) % 16
        ends_of.append(offs.tolist())
        return F.grouped_mm(rows, weights, offs=offs)

    monkeypatch.setattr(grouped, "_to_fp8_rowwise_then_scaled_grouped_mm", kernel)
    found = grouped_products(grouped.float8_product)
    assert ends_of == [[16, 16, 64, 96]]
    x, weights, upstream = expert_operands()
    parts = list(zip(x.split(COUNTS), weights, upstream.split(COUNTS), strict=True))
    torch.testing.assert_close(found[0], torch.cat([rows @ weight.T for rows, weight, _ in parts]))
    torch.testing.assert_close(found[1], torch.cat([up @ weight for _, weight, up in parts]))
    torch.testing.assert_close(found[2], torch.cat([up.T @ rows for rows, _, up in parts]))
