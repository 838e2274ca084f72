"""What a model and an objective must agree on before they train together."""

import types

import pytest

from hekaton.errors import PluginError
from hekaton.forward_backward import ForwardBackward


def test_a_term_of_the_loss_that_model_and_objective_both_have_is_an_error():
    objective = types.SimpleNamespace(weights={"cross_entropy": 1.0, "balance": 0.1})
    with pytest.raises(
        PluginError, match=r"two terms 'balance': of the model and of SimpleNamespace"
    ) as caught:
        ForwardBackward(None, objective, None, None, None, device=None, terms={"balance": 0.01})
    assert "TrainSpec.terms" in str(caught.value)
