"""DocumentAttention against attention written out, row by row and document by document."""

import math

import pytest
import torch

from hekaton_blocks import AttentionPattern, DocumentAttention


def written_out(q, k, v, starts, scale=None):
    """softmax(q k^T * scale) v for each query on its own, over the keys of its document so far."""
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        first = max(s for s in starts[b] if s <= t)
        keys, values = k[b, h // group, first : t + 1], v[b, h // group, first : t + 1]
        weights = torch.softmax(keys @ q[b, h, t] * scale, dim=0)
        out[b, h, t] = weights @ values
    return out


def ids_from(starts, seq):
    lengths = [[end - start for start, end in zip(row, [*row[1:], seq], strict=True)] for row in starts]
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


STARTS = [[0, 4, 5], [0]]


def test_stays_inside_documents(qkv):
    out = DocumentAttention()(*qkv, ids_from(STARTS, 9))
    torch.testing.assert_close(out, written_out(*qkv, STARTS), rtol=1e-12, atol=1e-12)


def test_without_documents_each_row_is_one(qkv):
    torch.testing.assert_close(
        DocumentAttention()(*qkv), written_out(*qkv, [[0], [0]]), rtol=1e-12, atol=1e-12
    )


def test_values_may_be_narrower_and_the_scale_is_the_one_given(qkv):
    q, k, v = qkv
    narrow, everywhere = v[..., :5], torch.arange(9)
    for documents, starts in ((ids_from(STARTS, 9), STARTS), (None, [[0], [0]])):
        expected = written_out(q, k, narrow, starts, scale=0.9)
        for at in ({}, {"queries_at": everywhere, "keys_at": everywhere}):
            out = DocumentAttention(AttentionPattern(scale=0.9))(q, k, narrow, documents, **at)
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_masked_path_that_compile_takes_is_the_same(qkv):
    compiled = torch.compile(DocumentAttention(), backend="aot_eager", fullgraph=True)
    documents = ids_from(STARTS, 9)
    torch.testing.assert_close(compiled(*qkv, documents), written_out(*qkv, STARTS), rtol=1e-12, atol=1e-12)


def test_gradients_stay_inside_documents(qkv):
    q, k, v = (x.requires_grad_() for x in qkv)
    out = DocumentAttention()(q, k, v, ids_from(STARTS, 9))
    out[0, :, 4].sum().backward()  # a document of its own: one token
    assert k.grad[0, :, :4].abs().max() == 0
    assert v.grad[0, :, 4].abs().min() > 0
    assert v.grad[1].abs().max() == 0
