"""How many floating-point operations a token costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from hekaton_blocks.moe import MoE
from hekaton_blocks.multi_token import MultiTokenDecoder


@lru_cache(maxsize=8)
def multiplied_parameters(model: Callable[[Any], nn.Module], config: Any) -> int:
    """The parameters that a token is multiplied by: the matrices of linear layers, and of experts the share
    that a token goes to. A layer for a second token is followed by the output once more.

    :param model: makes the model of a configuration; it is made on the meta device.
    """
    with torch.device("meta"):
        made = model(config)
    return round(
        sum(times * made.get_parameter(name).numel() for name, times in multiplied(made, {}).items())
    )


def multiplied(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Parameter -> how many times a token is multiplied by it, as ``TrainSpec.multiplied`` has it.

    :param shapes: which do not matter here.
    """
    found = {
        f"{name}.{own}": 1.0
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 2
    }
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            share = module.config.top_k / module.n_experts
            experts = module.experts.named_parameters()
            found |= {f"{name}.experts.{own}": share for own, parameter in experts if parameter.dim() == 3}
    if isinstance(model, MultiTokenDecoder):
        found["output.weight"] += len(model.mtp_layers)
    return found


def decoder_flops_per_token(
    n_matmul_params: int,
    *,
    n_layers: int,
    n_heads: int,
    head_dim: float,
    seq_len: int,
    window: int | None = None,
    chunk: int | None = None,
) -> float:
    """Forward and backward of a dense decoder, per token.

    6 operations per parameter that is multiplied (2 forward, 4 backward; embeddings are looked up, not
    multiplied), and for each layer's causal attention half of the 12 per pair of positions and channel
    (PaLM, Chowdhery et al., 2022, appendix B, halved for the causal mask).

    :param head_dim: where keys and values differ in theirs, the mean of both.
    :param window: keys that a query sees at most, as :class:`hekaton_blocks.AttentionPattern` has it; and so
        for ``chunk``, of which only one of both is given.
    """
    pairs = seq_len / 2  # per query
    if chunk is not None:
        whole, rest = divmod(seq_len, chunk)
        pairs = (whole * chunk**2 + rest**2) / (2 * seq_len)
    if window is not None and window < seq_len:
        pairs -= (seq_len - window) ** 2 / (2 * seq_len)
    return 6.0 * n_matmul_params + 12.0 * n_layers * n_heads * head_dim * pairs
