"""The conformance kit finds what is wrong with datasets, tokenizers, schedules and loggers."""

import types

import numpy as np
import pytest

from hekaton.data import Encoded
from hekaton.data.byte import ByteTokenizer
from hekaton.data.encoders import IdsEncoder
from hekaton.jsonl import build as jsonl
from hekaton.optim import warmup_stable_decay
from hekaton.testing import check_dataset, check_encoder, check_logger, check_schedule, check_tokenizer


class Numbers:
    fingerprint = "numbers"

    def __len__(self):
        return 7

    def fetch(self, indices):
        return [np.arange(index + 1) for index in indices]


class ByPlace(Numbers):
    def fetch(self, indices):
        return [np.arange(place + 1) for place, _ in enumerate(indices)]


class Sorted(Numbers):
    def fetch(self, indices):
        return super().fetch(sorted(indices))


class Empty(Numbers):
    def __len__(self):
        return 0


def test_right_ones_pass():
    check_dataset(Numbers(), IdsEncoder())
    check_tokenizer(ByteTokenizer(), ["one", "", "zwölf"])
    check_schedule(warmup_stable_decay)
    check_logger(jsonl)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (ByPlace(), "document 0 differs when it is fetched alone"),
        (Sorted(), "document 6 differs when it is fetched alone"),
        (Empty(), "it has no documents"),
        (types.SimpleNamespace(fingerprint="f"), "SimpleNamespace has no __len__, fetch"),
    ],
)
def test_a_wrong_dataset_fails(dataset, message):
    with pytest.raises(AssertionError, match=message):
        check_dataset(dataset, IdsEncoder())


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda texts: [np.array([300])] * len(texts), "are not all below vocab_size"),
        (lambda texts: [np.array([1.0])] * len(texts), "are no array of whole numbers"),
        (lambda texts: [np.array([len(texts)])] * len(texts), "depend on what is encoded together"),
        (lambda texts: [np.array([0, 5])] * len(texts), "have a mark at an end"),
        (lambda texts: [np.array([5])], "1 answers for 2 texts"),
    ],
)
def test_a_wrong_tokenizer_fails(encode, message):
    tokenizer = types.SimpleNamespace(
        vocab_size=300, bos_id=0, eos_id=1, fingerprint="f", encode_batch=encode, decode=lambda ids: ""
    )
    with pytest.raises(AssertionError, match=message):
        check_tokenizer(tokenizer, ["one", "two"])


def counting(section, settings, training_steps):
    calls = []
    return lambda steps_done: calls.append(steps_done) or 1 / len(calls)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda *_: lambda steps_done: -0.1, "the factor after 0 steps is -0.1"),
        (lambda *_: lambda steps_done: 0.0, "every factor is 0"),
        (lambda *_: lambda steps_done: "1", "the factor after 0 steps is '1'"),
        (counting, "the factor after 99 steps depends on what was asked for before it"),
    ],
)
def test_a_wrong_schedule_fails(build, message):
    with pytest.raises(AssertionError, match=message):
        check_schedule(build)


def test_a_wrong_logger_fails():
    with pytest.raises(AssertionError, match="has no close"):
        check_logger(lambda section, folder: types.SimpleNamespace(log=lambda step, metrics: None))
    with pytest.raises(TypeError, match="does not support item assignment"):
        check_logger(lambda section, folder: types.SimpleNamespace(close=lambda: None, log=adding))


def adding(step, metrics):
    metrics["seen"] = step


def test_an_encoder_that_lets_nothing_be_learned_fails():
    class Masked(IdsEncoder):
        def encode(self, parts):
            return [
                Encoded(one.ids, targets=np.zeros(len(one.ids), np.bool_)) for one in super().encode(parts)
            ]

    documents = [np.arange(3), np.arange(2)]
    check_encoder(IdsEncoder(), documents)
    with pytest.raises(AssertionError, match="no document has a target: nothing is learned"):
        check_encoder(Masked(), documents)
