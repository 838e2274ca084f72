"""A plugin for test_experts.py: the dispatcher ``deepep`` over a ``deep_ep.Buffer`` that does on gloo what DeepEP's
README and docstrings say of its own, in any type."""

import sys
import types

import torch
import torch.distributed as dist

from hekaton.contributions import Dispatcher, Ref, hookimpl


class Buffer:
    def __init__(self, group, num_nvl_bytes=0, num_rdma_bytes=0):
        self.group = group
        assert num_nvl_bytes > 0

    @staticmethod
    def get_dispatch_config(num_ranks):
        return types.SimpleNamespace(
            get_nvl_buffer_size_hint=lambda hidden_bytes, num_ranks: hidden_bytes * num_ranks,
            get_rdma_buffer_size_hint=lambda hidden_bytes, num_ranks: 0,
        )

    get_combine_config = get_dispatch_config

    def get_dispatch_layout(self, topk_idx, num_experts):
        """Tokens for each rank and for each expert, and whether a token is for a rank."""
        ranks = self.group.size()
        of_rank = topk_idx // (num_experts // ranks)
        is_token_in_rank = torch.stack([(of_rank == rank).any(1) for rank in range(ranks)], dim=1)
        per_expert = torch.bincount(topk_idx.flatten(), minlength=num_experts)
        return is_token_in_rank.sum(0), None, per_expert, is_token_in_rank, None

    def dispatch(self, x, handle=None, *, topk_idx=None, topk_weights=None, num_tokens_per_rank=None,
                 num_tokens_per_rdma_rank=None, is_token_in_rank=None, num_tokens_per_expert=None):  # fmt: skip
        """Received rows, by rank; of each its experts here, -1 for others, and their weights, 0 for others."""
        if handle is not None:
            tokens, sent, received, _ = handle
            return self._exchange(x[tokens], received, sent), None, None, None, None, None
        assert x.is_contiguous()
        assert topk_weights.is_contiguous()
        rank, token = is_token_in_rank.T.nonzero(as_tuple=True)
        sent = num_tokens_per_rank.tolist()
        counts = torch.empty_like(num_tokens_per_rank)
        dist.all_to_all_single(counts, num_tokens_per_rank, group=self.group)
        received = counts.tolist()
        local = len(num_tokens_per_expert) // self.group.size()
        there = topk_idx[token] - rank[:, None] * local
        is_there = (there >= 0) & (there < local)
        rows, idx, weights = (
            self._exchange(one, received, sent)
            for one in (x[token], there.where(is_there, -1), topk_weights[token] * is_there)
        )
        of_experts = torch.bincount(idx[idx >= 0], minlength=local).tolist()
        return rows, idx, weights, of_experts, (token, sent, received, len(x)), None

    def combine(self, x, handle, topk_weights=None):
        """The sum of each token's rows, and of its weights, back where it came from."""
        token, sent, received, tokens = handle
        assert x.is_contiguous()

        def back(values):
            out = values.new_zeros(tokens, values.shape[1])
            return out.index_add_(0, token, self._exchange(values, sent, received))

        return back(x), None if topk_weights is None else back(topk_weights), None

    def _exchange(self, values, received, sent):
        out = values.new_empty(sum(received), *values.shape[1:])
        dist.all_to_all_single(out, values.contiguous(), received, sent, group=self.group)
        return out


def build(section, group):
    from hekaton_parallel.deepep import DeepEP

    sys.modules["deep_ep"] = types.SimpleNamespace(Buffer=Buffer)
    DeepEP.types = (torch.float64,)
    return DeepEP(group)


@hookimpl
def hekaton_dispatchers():
    return [
        Dispatcher("deepep_by_definition", build=Ref("deep_ep_by_definition:build"), summary="of this test")
    ]
