"""The emulated products against a reference in float64, written from NVIDIA, 2025, "Pretraining Large Language Models
with NVFP4": appendices B (the format) and C (rotations, stochastic rounding, scales of 16 x 16).

Stochastic rounding with noise of 0.5 is rounding to nearest, which makes gradients comparable.
"""

import inspect
import itertools

import pytest
import torch
from torchao.prototype.moe_training.nvfp4_training import nvfp4_linear

from hekaton_mx import nvfp4

VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
TOLERANCE = 1e-5
"""Relative: products are summed in float32."""


def nearest(x, *, up_at_half=False):
    """Each value to the nearest of E2M1, ties to the even one or away from 0; beyond 6, that."""
    above = torch.searchsorted(VALUES, x.abs()).clamp(max=7)
    below = (above - 1).clamp(min=0)
    up, down = VALUES[above] - x.abs(), x.abs() - VALUES[below]
    ties = torch.full_like(above, True, dtype=torch.bool) if up_at_half else above % 2 == 0
    return torch.where((up < down) | ((up == down) & ties), VALUES[above], VALUES[below]) * x.sign()


def cast(x, *, tall=1, wide=16, of_part=False, up_at_half=False, saturate=True):
    """Rounded: scales of blocks in E4M3, and one of the whole, which makes the largest of those 448.

    :param of_part: the scale of the whole is that of each half, as before the halves of two ranks are put together.
    """
    if of_part:
        return torch.cat([cast(part, tall=tall, wide=wide, up_at_half=up_at_half) for part in x.chunk(2)])
    whole = x.abs().max() / (448 * 6)
    out = torch.empty_like(x)
    for i, j in itertools.product(range(0, x.shape[0], tall), range(0, x.shape[1], wide)):
        block = x[i : i + tall, j : j + wide]
        scale = (block.abs().max() / 6 / whole).clamp(2.0**-6, 448)
        scale = scale.float().to(torch.float8_e4m3fn).double()
        values = block / (scale * whole)
        kept = nearest(values, up_at_half=up_at_half)
        if not saturate:  # scales that are rounded down leave values beyond 6, which has no value here
            kept = torch.where(values.abs() > 6, values, kept)
        out[i : i + tall, j : j + wide] = kept * scale * whole
    return out


def rotation():
    """Walsh's matrix by its definition: the sign is the parity of the ones that both indices have."""
    walsh = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(16)] for i in range(16)])
    return (torch.tensor(nvfp4.SIGNS)[:, None] * walsh).double() / 4


def along_tokens(x, **mistake):
    """The transpose of ``x``, turned and rounded, 16 tokens at a time."""
    turned = torch.cat([part.T @ rotation() for part in x.split(16)], dim=1)
    return cast(turned, **mistake)


def linear(x, weight, upstream, **mistake):
    """Outputs and gradients of ``x @ weight.T`` for the gradient ``upstream`` of the outputs.

    :param x: (tokens, inputs); :param weight: (outputs, inputs); :param upstream: (tokens, outputs)
    """
    rounded = cast(weight, tall=16, **mistake)
    up, up_along_tokens = (one(upstream, up_at_half=True, **mistake) for one in (cast, along_tokens))
    return cast(x, **mistake) @ rounded.T, up @ rounded, up_along_tokens @ along_tokens(x, **mistake).T


def operands(tokens=48):
    """Input, weight and upstream gradient whose rows and columns differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 128, generator=generator) * torch.logspace(-2, 1, tokens)[:, None]
    weight = torch.randn(64, 128, generator=generator) * torch.logspace(-3, 0, 128)
    return x, weight, torch.randn(tokens, 64, generator=generator) * torch.logspace(-3, 0, 64)


def computed(*tensors, product=nvfp4.emulated_product):
    x, weight, upstream = (one.clone().requires_grad_() for one in tensors)
    output = product(x.unflatten(0, (2, -1)), weight).flatten(0, 1)
    output.backward(upstream)
    return output.detach(), x.grad, weight.grad


def error(found, expected):
    """The largest relative error of outputs or gradients."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))


def test_outputs_and_gradients_are_the_references(no_noise):
    found = computed(*operands())
    exact = [one.double() for one in operands()]
    assert error(found, linear(*exact)) < TOLERANCE
    for mistake in ({"wide": 32}, {"of_part": True}, {"saturate": False}):
        assert error(found, linear(*exact, **mistake)) > 1e-3, mistake
    rows_of_weights = cast(exact[0]) @ cast(exact[1]).T
    assert error(found[:1], [rows_of_weights]) > 1e-2
    other_axis = cast(exact[0].T).T @ cast(exact[1], tall=16).T
    assert error(found[:1], [other_axis]) > 1e-2


def test_products_of_zeros_are_zeros():
    x, weight, upstream = operands()
    out, given, of_weight = computed(torch.zeros_like(x), weight, torch.zeros_like(upstream))
    assert not any(one.any() for one in (out, given, of_weight))


def test_stochastic_rounding_gives_a_neighbour_and_the_value_in_the_mean():
    torch.manual_seed(0)
    x = torch.tensor([0.1, 0.25, -0.75, 1.2, 1.75, 2.4, -3.5, 4.5, 5.9, 6.0, 7.0]).repeat(20_000, 1)
    found = nvfp4.to_e2m1(x, stochastic=True).double()
    for column in range(x.shape[1]):
        exact = x[0, column].double().clamp(-6, 6)
        size = exact.abs()
        around = {float(VALUES[size >= VALUES].max()), float(VALUES[size <= VALUES].min())}
        assert {abs(float(one)) for one in found[:, column].unique()} == around
        spread = (max(around) - min(around)) / 2 / 20_000**0.5
        assert abs(found[:, column].mean() - exact) <= 4 * spread


def test_gradients_of_weights_are_unbiased():
    """Over many draws the mean is that of gradients that are not rounded."""
    x, weight, upstream = operands()
    torch.manual_seed(0)
    draws = torch.stack([computed(x, weight, upstream)[2] for _ in range(64)]).double()
    turned = torch.cat([part.T @ rotation() for part in upstream.double().split(16)], dim=1)
    expected = turned @ along_tokens(x.double()).T
    assert error([draws.mean(0)], [expected]) < error([draws[0]], [expected]) / 5


def test_the_kernels_are_given_whole_tiles_in_bfloat16(monkeypatch):
    """torchao's are for GPUs of capability 10.0; here a plain product takes their place."""
    signature, given = inspect.signature(nvfp4_linear.nvfp4_linear), []

    def kernel(*positional, **named):
        signature.bind(*positional, **named)
        x, weight = positional
        given.append((tuple(x.shape), x.dtype, weight.dtype, named["sign_vector"], named["sr_seed"].tolist()))
        return x @ weight.T

    monkeypatch.setattr(nvfp4_linear, "nvfp4_linear", kernel)
    x, weight, upstream = operands()
    out, of_x, of_weight = computed(x, weight, upstream, product=nvfp4.product)
    assert given == [((128, 128), torch.bfloat16, torch.bfloat16, nvfp4.SIGNS, [nvfp4.SEED])]
    assert {one.dtype for one in (out, of_x, of_weight)} == {torch.float32}
    assert error((out, of_x, of_weight), (x @ weight.T, upstream @ weight, upstream.T @ x)) < 1e-2
