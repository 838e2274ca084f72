"""What the next token is drawn from, against calculations by hand and transformers' own warpers."""

import math
from collections import Counter

import pytest
import torch

from hekaton.errors import ConfigError, TrainingError
from hekaton.sampling import Sampling, draw, probabilities

LIKELY = [0.4, 0.1, 0.3, 0.1, 0.1]
LOGITS = torch.tensor([[math.log(p) + 7.0 for p in LIKELY]])
SQUARES = [p**2 / sum(q**2 for q in LIKELY) for p in LIKELY]

BY_HAND = {
    "as the model says": (Sampling(), LIKELY),
    "the most likely": (Sampling(temperature=0.0), [1, 0, 0, 0, 0]),
    "a colder one": (Sampling(temperature=0.5), SQUARES),
    "among two": (Sampling(top_k=2), [4 / 7, 0, 3 / 7, 0, 0]),
    "of equals the first": (Sampling(top_k=3), [4 / 8, 1 / 8, 3 / 8, 0, 0]),
    "more than there are": (Sampling(top_k=9), LIKELY),
    "a nucleus that the second token completes": (Sampling(top_p=0.6), [4 / 7, 0, 3 / 7, 0, 0]),
    "a nucleus that ends with the first": (Sampling(top_p=0.3), [1, 0, 0, 0, 0]),
    # 3/8 of the three that are left do not make 0.45; of all five, 0.4 and 0.3 would have made 0.65.
    "a nucleus of what is left": (Sampling(top_k=3, top_p=0.9), [4 / 8, 1 / 8, 3 / 8, 0, 0]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_probabilities_are_those_by_hand(case):
    sampling, expected = BY_HAND[case]
    found = probabilities(LOGITS, sampling)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7), Sampling(top_k=20), Sampling(top_p=0.8),
        Sampling(temperature=1.3, top_k=50, top_p=0.9), Sampling(temperature=1e-3, top_p=0.5),
    ],
)  # fmt: skip
def test_probabilities_are_those_of_transformers(sampling):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(4, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    warped = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k is not None:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(None, warped)
    torch.testing.assert_close(probabilities(logits, sampling), warped.softmax(-1))


@pytest.mark.parametrize("case", ["as the model says", "a colder one", "among two"])
def test_tokens_come_as_often_as_they_are_likely(case):
    sampling, expected = BY_HAND[case]
    times = 3000
    drawn = draw(LOGITS.expand(times, -1), sampling, number=0, streams=range(times))
    counts = Counter(drawn)
    for token, likely in enumerate(expected):
        spread = math.sqrt(times * likely * (1 - likely))
        assert abs(counts[token] - times * likely) <= 4 * spread, (token, counts)


def test_draws_depend_on_seed_number_and_stream_alone():
    logits = torch.zeros(64, 50)
    drawn = draw(logits, Sampling(seed=5), number=3, streams=range(64))
    assert drawn == draw(logits, Sampling(seed=5), number=3, streams=range(64))
    assert drawn[10:12] == draw(logits[:2], Sampling(seed=5), number=3, streams=[10, 11])
    for other in (Sampling(seed=6), 3), (Sampling(seed=5), 4):
        changed = sum(
            a != b
            for a, b in zip(drawn, draw(logits, other[0], number=other[1], streams=range(64)), strict=True)
        )
        assert changed > 50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1 must be a finite number, at least 0"),
        ({"temperature": math.inf}, "temperature = inf must be a finite number"),
        ({"temperature": math.nan}, "temperature = nan must be a finite number"),
        ({"top_k": 0}, "top_k = 0 must be at least 1"),
        ({"top_p": 0.0}, "top_p = 0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p = 1.5 must be above 0 and at most 1"),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)


def test_logits_that_are_not_finite_are_an_error():
    for value in (math.nan, math.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(TrainingError, match="logits are not finite"):
                draw(torch.tensor([[0.0, value]]), Sampling(temperature=temperature), number=0, streams=[0])
    masked = torch.tensor([[0.0, -math.inf]])
    assert draw(masked, Sampling(), number=0, streams=[0]) == [0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": "1"}, "temperature = '1': a number was expected"),
        ({"temperature": None}, "temperature = None: a number was expected"),
        ({"top_k": 1.5}, "top_k = 1.5: a whole number was expected"),
        ({"seed": "x"}, "seed = 'x': a whole number was expected"),
    ],
)
def test_values_of_another_type_are_errors(given, said):
    with pytest.raises(ConfigError) as e:
        Sampling(**given)
    assert said in str(e.value)
