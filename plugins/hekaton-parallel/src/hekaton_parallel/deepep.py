"""The dispatcher of DeepEP (https://github.com/deepseek-ai/DeepEP): a token travels to each rank once,
however many of its experts are there, by kernels for NVLink and RDMA.

It calls ``deep_ep.Buffer`` as the README there does, without overlap: the backward of a dispatch is a
combine, and the other way round. It has run against the definition of that interface, on a CPU; not on GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from hekaton.errors import ConfigError
from hekaton.parallel.experts import ExpertGroup
from hekaton_blocks.dispatch import Experts
from hekaton_blocks.experts import count_of_each, is_fake
from hekaton_parallel.dispatch import AllToAll


class DeepEP(AllToAll):
    """As :class:`AllToAll`, with DeepEP between ranks that have different experts."""

    types: ClassVar[Sequence[torch.dtype]] = (torch.bfloat16,)
    """What its kernels send."""

    def __init__(self, group: ExpertGroup) -> None:
        super().__init__(group)
        self._buffers: dict[int, Any] = {}

    @torch.compiler.disable
    def _send(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        experts: Experts,
        n_experts: int,
        weights_on_input: bool,
    ) -> torch.Tensor:
        if self._ep.size() == 1 or is_fake(x):
            return super()._send(x, chosen, weights, experts, n_experts, weights_on_input)
        if x.dtype not in self.types:
            raise ConfigError(
                f"the dispatcher deepep sends bfloat16, and the layers compute in {x.dtype}",
                hint='choose training.mixed_precision_param = "bfloat16" or parallelism.expert_dispatcher = '
                '"alltoall"',
            )
        buffer = self._buffer(x.shape[1] * max(x.element_size(), 2))
        rows, local, of_rows, handle = _Dispatch.apply(x, weights, chosen, buffer, n_experts)
        # A row once for each of its experts that this rank has, sorted by these; -1 stands for others.
        flat = local.flatten()
        places = (flat >= 0).nonzero().squeeze(1)
        places = places[flat[places].argsort(stable=True)]
        counts = count_of_each(flat[places], n_experts // self._ep.size())
        factors = of_rows.flatten().index_select(0, places).unsqueeze(-1)
        each = _Each.apply(rows, places, local.shape[1])
        if weights_on_input:
            results = experts((each * factors).type_as(rows), counts)
        else:
            results = experts(each, counts) * factors
        spread = results.new_zeros(len(flat), rows.shape[1]).index_copy(0, places, results)
        out: torch.Tensor = spread.unflatten(0, local.shape).sum(1).type_as(rows)
        return _Combine.apply(out, buffer, handle)  # type: ignore[no-any-return, no-untyped-call]

    def _buffer(self, row_bytes: int) -> Any:
        """Memory for rows of this size, made once; every rank of the group comes here together."""
        if row_bytes not in self._buffers:
            from deep_ep import Buffer

            ranks = self._ep.size()
            configs = (Buffer.get_dispatch_config(ranks), Buffer.get_combine_config(ranks))
            self._buffers[row_bytes] = Buffer(
                self._ep,
                max(config.get_nvl_buffer_size_hint(row_bytes, ranks) for config in configs),
                max(config.get_rdma_buffer_size_hint(row_bytes, ranks) for config in configs),
            )
        return self._buffers[row_bytes]


class _Dispatch(torch.autograd.Function):
    """Tokens to the ranks of their experts: the rows there, the numbers there of their experts, and their
    weights."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, buffer: Any, n_experts: int
    ) -> tuple[Any, ...]:
        per_rank, per_node, per_expert, is_in_rank, _ = buffer.get_dispatch_layout(chosen, n_experts)
        rows, local, of_rows, _, handle, _ = buffer.dispatch(
            x.contiguous(),
            topk_idx=chosen,
            topk_weights=weights.contiguous(),
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=is_in_rank,
            num_tokens_per_expert=per_expert,
        )
        ctx.buffer, ctx.handle = buffer, handle
        ctx.mark_non_differentiable(local)
        return rows, local, of_rows, handle

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        of_x, of_weights, _ = ctx.buffer.combine(
            grads[0].contiguous(), ctx.handle, topk_weights=grads[2].contiguous()
        )
        return of_x, of_weights, None, None, None


class _Combine(torch.autograd.Function):
    """Back to the ranks that rows came from, where those of a token are summed."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, buffer: Any, handle: Any) -> torch.Tensor:
        ctx.buffer, ctx.handle = buffer, handle
        out: torch.Tensor = buffer.combine(rows.contiguous(), handle)[0]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return ctx.buffer.dispatch(grads[0].contiguous(), handle=ctx.handle)[0], None, None


class _Each(torch.autograd.Function):
    """Row ``place // k`` for each of these places; its backward sums in a fixed order."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, k: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.shape = (len(rows), k)
        return rows.index_select(0, places // k)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        rows, k = ctx.shape
        spread = grads[0].new_zeros(rows * k, grads[0].shape[1])
        spread[places] = grads[0]
        return spread.unflatten(0, (rows, k)).sum(1), None, None


def deepep(section: Any, group: ExpertGroup) -> DeepEP:
    return DeepEP(group)
