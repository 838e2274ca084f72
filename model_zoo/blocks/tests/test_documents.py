"""Packed documents as FlexAttention's tiles, against torch's own mask and attention document by document."""

import contextlib
import warnings

import pytest
import torch

from hekaton_blocks import AttentionPattern, DocumentAttention, PackedDocuments, documents, pack_documents

CAUSAL = AttentionPattern()
DOCUMENTS_OF_SOME_10_TOKENS, OF_SOME_200 = 0.1, 0.005


def some_documents(batch, seq, share, seed=0):
    """(batch, seq): a new document begins at ``share`` of the tokens, and each has a number of its own."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(batch, seq, generator=generator) < share).cumsum(-1)
    numbers = torch.randperm(seq + 1, generator=generator)  # in no order
    return numbers[ids]


def some_heads(batch, seq, *, heads=4, kv_heads=2, head_dim=16, **kind):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, n, seq, head_dim, generator=generator).to(**kind).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]


def attend_and_gradients(attend, heads, packed):
    out = attend(*heads, packed)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), heads)]


@pytest.mark.parametrize("seq", [1, 100, 128, 700, 1024])
@pytest.mark.parametrize("share", [0.0, OF_SOME_200, DOCUMENTS_OF_SOME_10_TOKENS, 1.0])
def test_tiles_are_those_of_the_rule_for_each_pair_of_tokens(seq, share):
    from torch.nn.attention.flex_attention import create_block_mask

    ids = some_documents(3, seq, share)
    tiles = documents.attention_tiles(CAUSAL, ids)
    expected = create_block_mask(
        lambda b, h, q, k: (q >= k) & (ids[b, q] == ids[b, k]), 3, None, seq, seq, device="cpu"
    )
    assert torch.equal(tiles.to_dense(), expected.to_dense())
    for count in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(tiles, count), getattr(expected, count)), count


@torch.no_grad()
@pytest.mark.parametrize("seq", [100, 300])
@pytest.mark.parametrize("share", [OF_SOME_200, DOCUMENTS_OF_SOME_10_TOKENS])
def test_attention_over_tiles_is_attention_document_by_document(backends_on_cpu, seq, share):
    ids = some_documents(2, seq, share)
    heads = [x.detach() for x in some_heads(2, seq)]
    tiled = PackedDocuments(ids, {CAUSAL.mask_key: documents.attention_tiles(CAUSAL, ids)})
    attend = DocumentAttention()
    with backends_on_cpu():
        got = attend(*heads, tiled)
    torch.testing.assert_close(got, attend(*heads, ids), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tiles_pass_into_a_compiled_block():
    ids = some_documents(2, 300, OF_SOME_200)
    heads = [x.detach() for x in some_heads(2, 300)]
    attend = DocumentAttention()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    tiled = PackedDocuments(ids, {CAUSAL.mask_key: documents.attention_tiles(CAUSAL, ids)})
    torch.testing.assert_close(compiled(*heads, tiled), attend(*heads, ids), rtol=1e-5, atol=1e-5)


def test_on_the_cpu_the_ids_are_all_that_is_prepared():
    ids = some_documents(2, 16, 0.5)
    assert pack_documents(ids) is ids
    assert pack_documents(None) is None


@contextlib.contextmanager
def waiting_is_an_error():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_on_cuda_attention_is_that_of_the_cpu(compiled, dtype, tolerance):
    ids = some_documents(2, 1000, OF_SOME_200)
    on_cpu = some_heads(2, 1000, heads=8, kv_heads=2, head_dim=64, dtype=torch.float32)
    with torch.no_grad():  # both see the same numbers
        for x in on_cpu:
            x.copy_(x.to(dtype))
    on_cuda = [x.detach().to("cuda", dtype).requires_grad_() for x in on_cpu]
    expected = attend_and_gradients(DocumentAttention(), on_cpu, ids)
    attend = DocumentAttention()
    if compiled:
        attend.compile(fullgraph=True)
    on_device = ids.cuda()
    with waiting_is_an_error():
        packed = pack_documents(on_device)
    assert isinstance(packed, PackedDocuments)
    for got, want in zip(attend_and_gradients(attend, on_cuda, packed), expected, strict=True):
        assert (got.cpu().float() - want).norm() < tolerance * want.norm()


@pytest.mark.cuda
def test_on_cuda_no_mask_of_every_pair_of_tokens_is_in_memory():
    seq = 16384
    ids = some_documents(1, seq, OF_SOME_200).cuda()
    heads = some_heads(1, seq, heads=1, kv_heads=1, head_dim=64, dtype=torch.bfloat16, device="cuda")
    attend_and_gradients(DocumentAttention(), heads, pack_documents(ids))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend_and_gradients(DocumentAttention(), heads, pack_documents(ids))
    assert torch.cuda.max_memory_allocated() - before < seq * seq / 4
