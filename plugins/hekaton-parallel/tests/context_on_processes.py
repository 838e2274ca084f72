"""Run by test_context.py: every strategy, on every rank's part, against attention over the whole sequence."""

from dataclasses import replace

import torch
import torch.distributed as dist

from hekaton.parallel.context import ContextGroup
from hekaton_blocks import AttentionPattern, DocumentAttention
from hekaton_parallel.context import allgather, ring, ulysses
from hekaton_parallel.ring import RingAttention

PATTERNS = (
    AttentionPattern(window=5),
    AttentionPattern(chunk=7),
    AttentionPattern(causal=False),
    AttentionPattern(sinks=True, scale=0.7),
    AttentionPattern(window=5, sinks=True),
    AttentionPattern(chunk=7, sinks=True, softcap=0.8),
)
SEQ, HEADS, KV_HEADS = 24, 8, 4
DOCUMENTS = torch.tensor([[0] * 3 + [1] * 13 + [2] * 8, [0] * 23 + [1]])


def attend() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for build in (allgather, ulysses, ring):
        for load_balance in (True, False):
            for documents in (None, DOCUMENTS):
                group = ContextGroup(process_group=dist.group.WORLD, load_balance=load_balance)
                compare(build(None, group), group, documents)
                compare(build(None, group), group, documents, AttentionPattern(scale=0.7), v_head_dim=6)
                if build is not ulysses:  # which deals out the heads
                    one = None if documents is None else documents[:1]
                    compare(build(None, group), group, one, rows=1, kv_heads=1)
    dist.destroy_process_group()


def attend_by_patterns(off_by_one: bool = False) -> None:
    """Windows, chunks and sinks under every strategy; none of the sizes divides a rank's part.

    :param off_by_one: put that mistake in, on several ranks alone.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for build in (allgather, ulysses, ring):
        for load_balance in (True, False):
            group = ContextGroup(process_group=dist.group.WORLD, load_balance=load_balance)
            for documents in (None, DOCUMENTS):
                for pattern in PATTERNS:
                    compare(build(None, group), group, documents, pattern, off_by_one=off_by_one)
    dist.destroy_process_group()


def attend_by_flash() -> None:
    """The ring over flash kernels, which take no documents."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    RingAttention.apply = None  # the other way is not taken
    for load_balance in (True, False):
        group = ContextGroup(process_group=dist.group.WORLD, load_balance=load_balance)
        compare(ring(None, group), group, None, dtype=torch.float32, tolerance=2e-6)
        scaled = AttentionPattern(scale=0.7)
        compare(ring(None, group), group, None, scaled, v_head_dim=6, dtype=torch.float32, tolerance=2e-6)
        compare(ring(None, group), group, None, dtype=torch.bfloat16, tolerance=3e-2)
    dist.destroy_process_group()


def compare(
    strategy, group, documents, pattern=None, *, rows=2, kv_heads=KV_HEADS, v_head_dim=8, dtype=torch.float64,
    tolerance=1e-12, off_by_one=False,
) -> None:  # fmt: skip
    pattern = AttentionPattern() if pattern is None else pattern
    generator = torch.Generator().manual_seed(0)
    whole = [
        torch.randn(rows, heads, SEQ, channels, generator=generator, dtype=torch.float64)
        for heads, channels in ((HEADS, 8), (kv_heads, 8), (kv_heads, v_head_dim), (HEADS, v_head_dim))
    ]
    *inputs, grad = whole
    sinks = torch.linspace(-2, 2, HEADS, dtype=torch.float64) if pattern.sinks else None
    reference = [x.clone().requires_grad_() for x in inputs]
    expected, of_sinks = attended(DocumentAttention(pattern), reference, documents, sinks, grad)

    if off_by_one and pattern.window is not None:
        pattern = replace(pattern, window=pattern.window - 1)
    at = strategy.order(SEQ, group.degree).chunk(group.degree)[group.rank]
    mine = [x[:, :, at].clone().requires_grad_() for x in inputs]
    inner = strategy.replace(DocumentAttention(pattern))
    got, of_mine = attended(inner, mine, documents, sinks, grad[:, :, at], dtype)
    torch.testing.assert_close(got.double(), expected[:, :, at], rtol=tolerance, atol=tolerance)
    for x, its in zip(mine, reference, strict=True):
        torch.testing.assert_close(x.grad, its.grad[:, :, at], rtol=tolerance, atol=tolerance)
    if of_sinks is not None:
        dist.all_reduce(of_mine)
        torch.testing.assert_close(of_mine, of_sinks, rtol=tolerance, atol=tolerance)


def attended(inner, heads, documents, sinks, grad, dtype=torch.float64):
    """What comes out, after its backward, and the gradient of the sinks."""
    own = {} if sinks is None else {"sinks": sinks.clone().requires_grad_()}
    out = inner(*(x.to(dtype) for x in heads), documents, **own)
    out.backward(grad.to(dtype))
    return out, own["sinks"].grad if own else None
