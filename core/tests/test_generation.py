"""How texts are continued, on a model whose next token is known by hand; it has no cache."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hekaton.errors import ConfigError
from hekaton.generation import AT_ONCE, generate, stream
from hekaton.loaded_model import LoadedModel
from hekaton.sampling import Sampling

VOCAB = 17
GREEDY = Sampling(temperature=0.0)


class Sums(nn.Module):
    """The next token is the sum of all tokens so far, and of their number, modulo the vocabulary."""

    def __init__(self, sharpness=30.0):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, tokens, positions, documents=None):
        assert positions.shape == tokens.shape
        sums = (tokens.cumsum(1) + positions + 1) % VOCAB
        return nn.functional.one_hot(sums, VOCAB) * self.sharpness


def by_hand(prompt, count):
    text = list(prompt)
    for _ in range(count):
        text.append((sum(text) + len(text)) % VOCAB)
    return text[len(prompt) :]


PROMPTS = [[3], [1, 2, 3, 4, 5], [16] * 9, [0, 0], [7, 1]]
LONG = [n % VOCAB for n in range(AT_ONCE + 30)]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_prompts_of_different_lengths_are_continued_as_each_alone(batch_size):
    prompts = [*PROMPTS, LONG]
    found = generate(Sums(), prompts, max_new_tokens=6, sampling=GREEDY, batch_size=batch_size)
    assert found == [by_hand(prompt, 6) for prompt in prompts]


def test_a_text_ends_with_one_of_the_tokens_that_end_texts():
    expected = []
    for prompt in PROMPTS:
        text = by_hand(prompt, 20)
        first = min((text.index(end) for end in (2, 9) if end in text), default=19)
        expected.append(text[: first + 1])
    assert len({len(text) for text in expected}) > 2
    assert generate(Sums(), PROMPTS, max_new_tokens=20, sampling=GREEDY, ends=[2, 9]) == expected


def test_a_text_ends_at_the_positions_of_the_model():
    found = generate(Sums(), PROMPTS, max_new_tokens=6, sampling=GREEDY, positions=10)
    assert found == [by_hand(prompt, min(6, 10 - len(prompt))) for prompt in PROMPTS]


def test_tokens_come_one_by_one_with_the_last_marked():
    tokens = list(stream(Sums(), [[3], [1, 2]], max_new_tokens=2, sampling=GREEDY))
    one, two = by_hand([3], 2), by_hand([1, 2], 2)
    assert tokens == [(0, one[0], False), (1, two[0], False), (0, one[1], True), (1, two[1], True)]


def test_draws_of_a_prompt_depend_on_no_other_and_equal_prompts_have_their_own():
    model, sampling = Sums(sharpness=1.0), Sampling(seed=3)
    prompts = [[3], [1, 2, 3], [3], [5]]
    together = generate(model, prompts, max_new_tokens=24, sampling=sampling)
    assert together == generate(model, prompts, max_new_tokens=24, sampling=sampling, batch_size=1)
    alone = [generate(model, [prompt], max_new_tokens=24, sampling=sampling)[0] for prompt in prompts]
    assert [together[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    assert together[2] != together[0]
    assert generate(model, prompts, max_new_tokens=24, sampling=Sampling(seed=4)) != together


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 4)

    def forward(self, tokens):
        return self.embedding(tokens).mean(1)


def test_a_text_that_cannot_be_continued_is_refused():
    with pytest.raises(ConfigError, match="prompt 2 has no tokens"):
        generate(Sums(), [[1], []], max_new_tokens=1)
    with pytest.raises(ConfigError, match="prompt 1 has 8 tokens, and the model 8 positions: none is left"):
        generate(Sums(), [[1] * 8], max_new_tokens=1, positions=8)
    with pytest.raises(ConfigError, match="max_new_tokens = 0 must be at least 1"):
        generate(Sums(), [[1]], max_new_tokens=0)
    with pytest.raises(ConfigError, match=r"Hidden returns \(1, 4\), not logits of \(batch, seq, vocab\)"):
        generate(Hidden(), [[1]], max_new_tokens=1)


def test_a_length_and_a_text_of_another_type_are_errors():
    with pytest.raises(ConfigError, match=r"max_new_tokens = 1\.5: a whole number was expected"):
        generate(Sums(sharpness=1.0), [[1]], max_new_tokens=1.5)
    with pytest.raises(ConfigError, match="batch_size = 0 must be at least 1"):
        generate(Sums(sharpness=1.0), [[1]], max_new_tokens=1, batch_size=0)
    with pytest.raises(ConfigError, match="a text was expected, not bytes"):
        LoadedModel.encode(None, b"def")
    with pytest.raises(ConfigError, match="prompt 2: the ids of this model are 0 to 4"):
        LoadedModel.stream(SimpleNamespace(config=SimpleNamespace(vocab_size=5)), [[4], [1, 5]])
