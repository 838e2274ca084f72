"""Rotary embedding against its definition with complex numbers, and transformers' Llama 3.1 scaling."""

import math

import pytest
import torch

from hekaton_blocks import RopeScaling, YarnScaling, apply_rotary, rotary_table
from hekaton_blocks.rope import inverse_frequencies


def test_rotates_neighbouring_pairs_as_complex_numbers():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]])
    angles = positions[..., None, None].double() * 10_000.0 ** (-torch.arange(4).double() / 4)
    expected = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
    got = apply_rotary(x, rotary_table(positions, 8, 10_000.0))
    torch.testing.assert_close(got, torch.view_as_real(expected).flatten(-2), rtol=1e-5, atol=1e-5)


def test_keeps_the_dtype():
    table = rotary_table(torch.arange(4), 8, 10_000.0)
    assert apply_rotary(torch.zeros(1, 4, 1, 8, dtype=torch.bfloat16), table).dtype == torch.bfloat16


@pytest.mark.parametrize(("factor", "high"), [(8.0, 4.0), (32.0, 4.0), (16.0, 1.0)])
def test_scaling_is_that_of_transformers(factor, high):
    """Also Llama 4 Scout's, whose two factors are the same."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": high, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=4096, num_attention_heads=32, rope_parameters=parameters, max_position_embeddings=131_072
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    scaling = RopeScaling(factor=factor, high_freq_factor=high)
    got = inverse_frequencies(128, 500_000.0, scaling, device=torch.device("cpu"))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_a_wavelength_at_two_equal_bounds_is_kept():
    """Where the formula has 0 / 0: the first pair turns once in 2 pi positions."""
    turns = (torch.ones(()) * 100 / (2 * math.pi)).item()
    scaling = RopeScaling(16.0, low_freq_factor=turns, high_freq_factor=turns, original_context=100)
    got = inverse_frequencies(4, 10_000.0, scaling, device=torch.device("cpu"))
    torch.testing.assert_close(got, torch.tensor([1.0, 0.01 / 16]))


@pytest.mark.parametrize(
    "given",
    [
        {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.2, "beta_fast": 16.0, "beta_slow": 2.0},
        {"factor": 32.0, "truncate": False},
    ],
)
def test_yarn_is_that_of_transformers(given):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 4096, **given}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, rope_parameters=parameters,
        max_position_embeddings=int(4096 * given["factor"]),
    )  # fmt: skip
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    scaling = YarnScaling(**given)
    got = inverse_frequencies(64, 1e4, scaling, device=torch.device("cpu"))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert scaling.rotary_factor == pytest.approx(factor, rel=1e-12)
    table = rotary_table(torch.tensor([7]), 64, 1e4, scaling)
    torch.testing.assert_close(table[..., 0].squeeze(), (7 * expected).cos() * factor, rtol=1e-5, atol=1e-6)


def test_deepseeks_softmax_factors():
    """0.1 * mscale * ln(40) + 1, squared: by hand for V3 and V2."""
    assert YarnScaling(40.0, mscale=1.0, mscale_all_dim=1.0).softmax_factor == pytest.approx(
        1.8738542, rel=1e-6
    )
    assert YarnScaling(40.0, mscale=0.707, mscale_all_dim=0.707).softmax_factor == pytest.approx(
        1.5896261, rel=1e-6
    )
