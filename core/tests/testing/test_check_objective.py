"""The conformance kit finds what is wrong with an objective."""

import math
from dataclasses import replace

import pytest
import torch

from hekaton.errors import PluginError
from hekaton.loss import NextToken
from hekaton.objective import BatchTensor
from hekaton.testing import check_objective

BATCH = {
    "tokens": torch.arange(24).reshape(3, 8) % 11,
    "labels": torch.arange(1, 25).reshape(3, 8) % 11,
}


def model(tokens):
    return torch.nn.functional.one_hot(tokens, 11).float() * 2.0


def check(objective):
    check_objective(objective, {name: value.clone() for name, value in BATCH.items()}, seq_len=8, model=model)


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


class Noisy(NextToken):
    """Gives float embeddings with noise, which it draws as it should."""

    step = 0

    def inputs(self, seq_len):
        return [
            BatchTensor(name="tokens", shape=(seq_len,), dtype=torch.float32, first_stage=True, sequence=0)
        ]

    def prepare(self, batch, draw):
        inputs, targets = super().prepare(batch, draw)
        draw = replace(draw, step=self.step or draw.step)
        return {"tokens": inputs["tokens"] + draw.normal("noise", (8,))}, targets


class OneDrawForAllSteps(Noisy):
    step = 1


class ChangesTheBatch(NextToken):
    def prepare(self, batch, draw):
        batch["tokens"] += 1
        return super().prepare(batch, draw)


class InputsAlone(NextToken):
    def prepare(self, batch, draw):
        return super().prepare(batch, draw)[0]


def counting(count):
    return type("Counting", (NextToken,), {"count": lambda self, targets: count(targets["labels"])})()


def summing(loss):
    def summed(self, outputs, targets):
        return loss(outputs, NextToken.loss(self, outputs, targets))

    return type("Summing", (NextToken,), {"loss": summed})()


def weighing(weights):
    return type("Weighing", (NextToken,), {"weights": weights})()


def along_the_sequence(outputs, terms):
    return {"next_token": (outputs[:, 1:] - outputs[:, :-1]).square().sum()}


def changing_outputs(outputs, terms):
    with torch.no_grad():
        outputs.mul_(1.0)
    return terms


def test_a_sound_objective_passes():
    check(NextToken())
    check_objective(Noisy(), BATCH, seq_len=8, model=lambda tokens: model(tokens.long().abs() % 11))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Divided(), "'next_token' is no sum over rows: is it divided already?"),
        (WithoutCount(), r"count\(\) gives the counts of \[\], its weights are of \['next_token'\]"),
        (Undeclared(), "input 'more' is not declared"),
        (DrawsByPlace(), "'tokens' of a row depends on the rows beside it"),
        (OneDrawForAllSteps(), "what it draws is the same in every step"),
        (ChangesTheBatch(), "prepare\\(\\) changes 'tokens' of the batch"),
        (InputsAlone(), "must return two mappings: inputs and targets"),
        (counting(lambda labels: {"next_token": 24}), "'next_token' as int, not as a tensor"),
        (counting(lambda labels: {"next_token": (labels > 0).sum(1)}), r"with shape \(3,\), not as a scalar"),
        (counting(lambda labels: {"next_token": labels.float().mean()}), "float32, not as a whole number"),
        (counting(lambda labels: {"next_token": (labels < 0).sum()}), "'next_token' counts nothing"),
        (
            summing(lambda outputs, terms: {"next_token": outputs.sum((1, 2))}),
            r"shape \(3,\), not as a scalar",
        ),
        (summing(lambda outputs, terms: terms["next_token"]), "as Tensor, not as a mapping"),
        (summing(lambda outputs, terms: {"next_token": terms["next_token"].detach()}), "has no gradient"),
        (summing(lambda outputs, terms: {"next_token": outputs.sum() * math.nan}), "is not finite"),
        (summing(changing_outputs), "changes the model's outputs in place"),
        (summing(along_the_sequence), "'next_token' is no sum over the sequence: under context parallel"),
        (weighing({}), "its weights are empty"),
        (weighing({"next_token": math.nan}), "the weight of 'next_token' is nan, not a finite number"),
        (weighing({"other": 1.0}), "its likelihood is 'next_token', its weights are of"),
    ],
)
def test_an_unsound_objective_does_not(objective, message):
    with pytest.raises(AssertionError, match=message):
        check(objective)


def test_a_sequence_that_a_tensor_does_not_have_is_an_error():
    with pytest.raises(PluginError, match="'x' is declared with sequence=1, and has 1 dims"):
        BatchTensor(name="x", shape=(8,), dtype=torch.float32, sequence=1)
