"""Attention with kept keys and values is attention over the whole text, whatever a layer attends to."""

import pytest
import torch
from torch import nn

from hekaton.errors import PluginError
from hekaton_blocks import Attention, AttentionPattern, key_value_cache, rotary_table

VOCAB, LENGTHS, END = 31, (19, 7, 12), 26
PATTERNS = {
    "causal": AttentionPattern(),
    "window": AttentionPattern(window=4),
    "chunks": AttentionPattern(chunk=5),
    "window in chunks, with sinks": AttentionPattern(window=3, chunk=6, sinks=True, scale=0.3),
}


class Decoder(nn.Module):
    def __init__(self, patterns):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.layers = nn.ModuleList(Attention(16, 4, 2, 8, pattern=pattern) for pattern in patterns)
        self.output = nn.Linear(16, VOCAB, bias=False)

    def forward(self, tokens, positions=None, documents=None):
        positions = torch.arange(tokens.shape[1]) if positions is None else positions
        x, rotary = self.embedding(tokens), rotary_table(positions, 8, 100.0)
        for layer in self.layers:
            x = x + layer(nn.functional.rms_norm(x, (16,)), rotary, documents)
        return self.output(nn.functional.rms_norm(x, (16,)))


def build(patterns):
    torch.manual_seed(0)
    model = Decoder(patterns)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@torch.no_grad()
@pytest.mark.parametrize("patterns", [[PATTERNS[name]] * 2 for name in PATTERNS] + [list(PATTERNS.values())])
def test_rows_of_different_lengths_have_the_logits_of_their_whole_texts(patterns):
    model = build(patterns)
    texts = torch.randint(0, VOCAB, (len(LENGTHS), END))
    expected = model(texts)
    lengths = torch.tensor(LENGTHS)
    with key_value_cache(model, len(LENGTHS), END) as forward:
        # Two pieces of prompts padded to the longest, then token by token, each row at its own place.
        padded = texts.masked_fill(torch.arange(END) >= lengths[:, None], 1)
        for at in (torch.arange(11), torch.arange(11, 19)):
            logits = forward(padded[:, at], at.expand(len(LENGTHS), -1))
            for row, length in enumerate(LENGTHS):
                within = at < length
                torch.testing.assert_close(
                    logits[row, within], expected[row, at[within]], rtol=1e-5, atol=1e-5
                )
        for step in range(END - max(LENGTHS)):
            at = (lengths + step)[:, None]
            logits = forward(texts.gather(1, at), at)
            torch.testing.assert_close(
                logits[:, 0], expected[range(len(LENGTHS)), at[:, 0]], rtol=1e-5, atol=1e-5
            )
    torch.testing.assert_close(model(texts), expected)


def test_other_attention_is_refused():
    with pytest.raises(PluginError, match="Linear, whose attention layers are not DocumentAttention"):
        key_value_cache(nn.Linear(2, 2), 1, 1).__enter__()
    with pytest.raises(PluginError, match="Decoder, whose attention layers see later tokens"):
        key_value_cache(build([AttentionPattern(causal=False)]), 1, 1).__enter__()
