"""Run by test_context.py: every strategy, on every rank's part, against attention over the whole sequence."""

import torch
import torch.distributed as dist

from hekaton.parallel.context import ContextGroup
from hekaton_blocks import DocumentAttention
from hekaton_parallel.context import allgather, ring, ulysses
from hekaton_parallel.ring import RingAttention

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
                compare(build(None, group), group, documents, scale=0.7, v_head_dim=6)
                if build is not ulysses:  # which deals out the heads
                    one = None if documents is None else documents[:1]
                    compare(build(None, group), group, one, rows=1, kv_heads=1)
    dist.destroy_process_group()


def attend_by_flash() -> None:
    """The ring over flash kernels, which take no documents."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    RingAttention.apply = None  # the other way is not taken
    for load_balance in (True, False):
        group = ContextGroup(process_group=dist.group.WORLD, load_balance=load_balance)
        compare(ring(None, group), group, None, dtype=torch.float32, tolerance=2e-6)
        compare(ring(None, group), group, None, scale=0.7, v_head_dim=6, dtype=torch.float32, tolerance=2e-6)
        compare(ring(None, group), group, None, dtype=torch.bfloat16, tolerance=3e-2)
    dist.destroy_process_group()


def compare(
    strategy, group, documents, *, rows=2, kv_heads=KV_HEADS, scale=None, v_head_dim=8, dtype=torch.float64,
    tolerance=1e-12,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    whole = [
        torch.randn(rows, heads, SEQ, channels, generator=generator, dtype=torch.float64)
        for heads, channels in ((HEADS, 8), (kv_heads, 8), (kv_heads, v_head_dim), (HEADS, v_head_dim))
    ]
    *inputs, grad = whole
    reference = [x.clone().requires_grad_() for x in inputs]
    expected = DocumentAttention(scale=scale)(*reference, documents)
    expected.backward(grad)

    at = strategy.order(SEQ, group.degree).chunk(group.degree)[group.rank]
    mine = [x[:, :, at].clone().requires_grad_() for x in inputs]
    got = strategy.replace(DocumentAttention(scale=scale))(*(x.to(dtype) for x in mine), documents)
    got.backward(grad[:, :, at].to(dtype))
    torch.testing.assert_close(got.double(), expected[:, :, at], rtol=tolerance, atol=tolerance)
    for x, its in zip(mine, reference, strict=True):
        torch.testing.assert_close(x.grad, its.grad[:, :, at], rtol=tolerance, atol=tolerance)
