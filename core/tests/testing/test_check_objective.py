"""The conformance kit finds what is wrong with an objective."""

import pytest
import torch

from hekaton.loss import NextToken
from hekaton.testing import check_objective

BATCH = {
    "tokens": torch.arange(24).reshape(3, 8) % 11,
    "labels": torch.arange(1, 25).reshape(3, 8) % 11,
}


def model(tokens):
    return torch.nn.functional.one_hot(tokens, 11).float() * 2.0


def check(objective):
    check_objective(objective, BATCH, seq_len=8, model=model)


class Divided(NextToken):
    def loss(self, outputs, targets):
        return {name: term / outputs.shape[0] for name, term in super().loss(outputs, targets).items()}


class WithoutCount(NextToken):
    def count(self, targets):
        return {}


class Undeclared(NextToken):
    def prepare(self, batch, draw):
        inputs, targets = super().prepare(batch, draw)
        return {**inputs, "more": inputs["tokens"]}, targets


class DrawsByPlace(NextToken):
    def prepare(self, batch, draw):
        inputs, targets = super().prepare(batch, draw)
        masked = torch.rand(inputs["tokens"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
        return {"tokens": inputs["tokens"] * masked}, targets


def test_a_sound_objective_passes():
    check(NextToken())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Divided(), "'next_token' is no sum over rows: is it divided already?"),
        (WithoutCount(), r"counts are of \[\], weights of \['next_token'\]"),
        (Undeclared(), "input 'more' is not declared"),
        (DrawsByPlace(), "'tokens' of a row depends on the rows beside it"),
    ],
)
def test_an_unsound_objective_does_not(objective, message):
    with pytest.raises(AssertionError, match=message):
        check(objective)
