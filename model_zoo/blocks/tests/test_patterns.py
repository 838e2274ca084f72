"""Every kind of mask against one built pair by pair, over all ways in which attention is computed."""

import itertools

import pytest
import torch

from hekaton.errors import ConfigError
from hekaton_blocks import (
    AttentionPattern,
    DocumentAttention,
    attention,
    documents,
    pack_documents,
)
from hekaton_blocks.backends import BACKENDS

SEQ, HEADS, KV_HEADS, HEAD_DIM = 23, 4, 2, 8
IDS = torch.tensor([[7] * 3 + [2] * 13 + [5] * 7, [0] * 22 + [1]])
PATTERNS = {
    "causal": AttentionPattern(),
    "bidirectional": AttentionPattern(causal=False),
    "window": AttentionPattern(window=4),
    "window of one": AttentionPattern(window=1),
    "chunks": AttentionPattern(chunk=5, scale=0.4),
    "bidirectional chunks": AttentionPattern(chunk=5, causal=False),
    "window in chunks": AttentionPattern(window=3, chunk=7),
    "sinks": AttentionPattern(sinks=True),
    "window with sinks": AttentionPattern(window=4, sinks=True, scale=0.7),
    "bidirectional with sinks": AttentionPattern(causal=False, sinks=True),
    "softcap": AttentionPattern(softcap=0.5, scale=0.9),
    "softcap in windows with sinks": AttentionPattern(softcap=0.8, window=4, sinks=True),
}


def sees(pattern: AttentionPattern, ids: list[int], query: int, key: int) -> bool:
    """The rule for one pair, written out."""
    if ids[query] != ids[key]:
        return False
    start = ids.index(ids[query])
    if pattern.chunk is not None and (query - start) // pattern.chunk != (key - start) // pattern.chunk:
        return False
    if pattern.window is not None and not query - key < pattern.window:
        return False
    return key <= query or not pattern.causal


def dense(pattern, q, k, v, sinks, ids):
    """A softmax over the whole row of scores, the sink among them."""
    ids = [[0] * SEQ] * len(q) if ids is None else ids.tolist()
    mask = torch.tensor(
        [[[sees(pattern, row, i, j) for j in range(SEQ)] for i in range(SEQ)] for row in ids]
    )[:, None]
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
    scale = HEAD_DIM**-0.5 if pattern.scale is None else pattern.scale
    scores = q @ k.mT * scale
    if pattern.softcap is not None:
        scores = pattern.softcap * (scores / pattern.softcap).tanh()
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(*scores.shape[:3], 1)), dim=-1)
    return scores.softmax(dim=-1)[..., :SEQ] @ v


def inputs(pattern, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, SEQ, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64) if pattern.sinks else None
    return [None if x is None else x.to(dtype).requires_grad_() for x in (*made, sinks)]


def with_gradients(attend, given):
    """The output, and the gradient of each input."""
    out = attend(*given)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [x for x in given if x is not None])]


def attend(pattern, ids, backend=None, **at):
    inner = DocumentAttention(pattern)
    inner.backend = backend
    if backend is not None:
        ids = pack_documents(ids, [pattern], backend=inner.chosen)

    def call(q, k, v, sinks):
        return inner(q, k, v, ids, **({} if sinks is None else {"sinks": sinks}), **at)

    return call


def piece_by_piece(pattern, ids):
    return attend(pattern, ids)


def by_positions(pattern, ids):
    everywhere = torch.arange(SEQ)
    return attend(pattern, ids, queries_at=everywhere, keys_at=everywhere)


@pytest.mark.parametrize("way", [piece_by_piece, by_positions, "as compiled"])
@pytest.mark.parametrize("kind", PATTERNS)
def test_attention_and_its_gradients_are_those_of_the_mask_pair_by_pair(kind, way, monkeypatch):
    monkeypatch.setattr(attention, "SMALLEST_PIECE", 2)  # windows of several pieces
    if way == "as compiled":
        way = piece_by_piece
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    pattern = PATTERNS[kind]
    for ids in (None, IDS):
        expected = with_gradients(lambda *x, ids=ids: dense(pattern, *x, ids), inputs(pattern))
        for got, want in zip(with_gradients(way(pattern, ids), inputs(pattern)), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_pattern_passes_into_a_compiled_block():
    pattern = AttentionPattern(window=4, chunk=7, sinks=True)
    block = torch.compile(attend(pattern, IDS), backend="aot_eager", fullgraph=True)
    expected = with_gradients(lambda *x: dense(pattern, *x, IDS), inputs(pattern))
    for got, want in zip(with_gradients(block, inputs(pattern)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_the_pattern_or_says_that_it_does_not(kind, backend, backends_on_cpu):
    pattern = PATTERNS[kind]
    if not set(pattern.requires) <= set(BACKENDS[backend].supports):
        assert backend == "varlen"  # and a run that names it is refused: test_attention_rules.py
        assert pattern.sinks or pattern.softcap
        return
    for ids in (None, IDS):
        expected = with_gradients(lambda *x, ids=ids: dense(pattern, *x, ids), inputs(pattern))
        with backends_on_cpu():
            if backend == "flex":  # a CPU has no backward for it
                given = [x if x is None else x.detach() for x in inputs(pattern)]
                got, expected = [attend(pattern, ids, backend)(*given)], expected[:1]
            else:
                got = with_gradients(attend(pattern, ids, backend), inputs(pattern))
        within = 1e-5 if backend == "flex" else 1e-12  # its log-sum-exp is in float32
        for one, want in zip(got, expected, strict=True):
            torch.testing.assert_close(one, want, rtol=within, atol=within)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_cuda_every_backend_computes_the_pattern(kind, backend):
    pattern = PATTERNS[kind]
    if not set(pattern.requires) <= set(BACKENDS[backend].supports):
        return
    for ids in (None, IDS):
        given = inputs(pattern, torch.bfloat16)
        reference = [x if x is None else x.detach().double().requires_grad_() for x in given]
        expected = with_gradients(lambda *x, ids=ids: dense(pattern, *x, ids), reference)
        on_cuda = [x if x is None else x.detach().cuda().requires_grad_() for x in given]
        got = with_gradients(attend(pattern, ids if ids is None else ids.cuda(), backend), on_cuda)
        for one, want in zip(got, expected, strict=True):
            assert (one.cpu().double() - want).norm() < 2e-2 * want.norm()


@pytest.mark.parametrize("seq", [100, 700, 1024])
def test_tiles_are_those_of_the_rule_for_each_pair_of_tokens(seq):
    from torch.nn.attention.flex_attention import create_block_mask

    ids = (torch.rand(3, seq, generator=torch.Generator().manual_seed(seq)) < 0.005).cumsum(-1)
    sizes = (None, 1, 127, 128, 129, 256, 300)
    for window, chunk, causal in itertools.product(sizes, (None, 128, 200), (True, False)):
        if window is not None and not causal:
            continue
        pattern = AttentionPattern(window=window, chunk=chunk, causal=causal)
        mask = pattern.mask(ids, torch.arange(seq), torch.arange(seq))[:, 0]
        expected = create_block_mask(lambda b, h, q, k, mask=mask: mask[b, q, k], 3, None, seq, seq, "cpu")
        tiles = documents.attention_tiles(pattern, ids)
        assert torch.equal(tiles.to_dense(), expected.to_dense()), pattern
        assert torch.equal(tiles.full_kv_num_blocks, expected.full_kv_num_blocks), pattern


def test_a_window_off_by_one_is_noticed(monkeypatch):
    seen = AttentionPattern.seen

    def off_by_one(pattern, queries_at, keys_at):
        back = queries_at[:, None] - keys_at
        return seen(pattern, queries_at, keys_at) & (back < pattern.window - 1)

    monkeypatch.setattr(AttentionPattern, "seen", off_by_one)
    monkeypatch.setattr(attention, "SMALLEST_PIECE", 2)
    for way in (piece_by_piece, by_positions):
        for ids in (None, IDS):
            given = inputs(PATTERNS["window"])
            with pytest.raises(AssertionError, match="not close"):
                torch.testing.assert_close(
                    way(PATTERNS["window"], ids)(*given), dense(PATTERNS["window"], *given, ids)
                )


def test_a_document_in_a_packed_row_is_attended_to_as_if_alone():
    """Chunks and windows are counted from its first token."""
    for kind in ("window", "chunks", "window in chunks", "window with sinks"):
        pattern = PATTERNS[kind]
        q, k, v, sinks = inputs(pattern)
        packed = attend(pattern, IDS)(q, k, v, sinks)[:1, :, 3:16]
        alone = attend(pattern, None)(*(x[:1, :, 3:16] for x in (q, k, v)), sinks)
        torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)


def test_no_mask_of_every_pair_of_tokens_is_in_memory():
    """Of windows and chunks on a CPU, forward and backward: the largest tensor is a piece's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend(
                x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)
            )
            return out  # fmt: skip

    seq = 2048
    for pattern in (
        AttentionPattern(window=64, sinks=True),
        AttentionPattern(window=64),
        AttentionPattern(chunk=64),
    ):
        q = torch.randn(1, 2, seq, 8, requires_grad=True)
        sinks = torch.zeros(2, requires_grad=True) if pattern.sinks else None
        with Sizes():
            attend(pattern, None)(q, q, q, sinks).sum().backward()
    assert max(largest) <= 2 * seq * 8


def test_a_window_of_what_comes_after_is_refused():
    with pytest.raises(ConfigError, match="window = 4 with causal = False"):
        AttentionPattern(window=4, causal=False)


def test_what_a_pattern_requires_has_names():
    assert AttentionPattern(scale=2.0).requires == ()
    assert AttentionPattern(window=4, sinks=True).requires == ("window", "sinks")
    assert AttentionPattern(chunk=4, causal=False, softcap=30.0).requires == (
        "bidirectional",
        "chunks",
        "softcap",
    )


@pytest.mark.parametrize("pattern", [AttentionPattern(chunk=5), AttentionPattern(window=3)])
def test_one_document_per_row_is_cut_without_looking_at_values(pattern):
    """As in a dry run, whose tensors have none."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(2, 4, 12, 8)
        assert DocumentAttention(pattern)(q, q, q).shape == q.shape
