"""What a model and an objective must agree on before they train together."""

import types

import pytest
import torch

from hekaton.errors import PluginError
from hekaton.forward_backward import ForwardBackward


def test_a_term_of_the_loss_that_model_and_objective_both_have_is_an_error():
    objective = types.SimpleNamespace(weights={"cross_entropy": 1.0, "balance": 0.1})
    with pytest.raises(
        PluginError, match=r"two terms 'balance': of the model and of SimpleNamespace"
    ) as caught:
        ForwardBackward(None, objective, None, None, None, device=None, terms={"balance": 0.01})
    assert "TrainSpec.terms" in str(caught.value)


def test_ranks_without_the_last_stage_have_losses_of_the_same_precision():
    pipeline = types.SimpleNamespace(loss_dtype=torch.float64)
    objective = types.SimpleNamespace(weights={"error": 1.0})
    steps = types.SimpleNamespace(pipeline=pipeline, _objective=objective, _device="cpu")
    loss = torch.tensor(0.5, dtype=torch.float32)
    for losses in ([(loss, {"error": loss})], []):
        total, terms = ForwardBackward._summed(steps, losses)
        assert total.dtype == terms["error"].dtype == torch.float64
