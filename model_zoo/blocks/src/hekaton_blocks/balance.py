"""What the layers of experts do once per optimizer step, and what they report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from hekaton.distributed import all_sum
from hekaton.mesh import Meshes
from hekaton_blocks.moe import BATCH_BALANCE, SEQUENCE_BALANCE, MoE
from hekaton_blocks.routing import MoEConfig


def update_experts(parts: Sequence[nn.Module], meshes: Meshes) -> None:
    """Move each expert's bias against its load in the step, for ``TrainSpec.before_step``.

    ``bias += rate * (sign(mean - count) - mean of these signs)``, in place, as torchtitan does (Wang et al.,
    2024, subtract no mean; it keeps the biases from drifting together and changes no choice). Counts are
    those of all processes that saw other tokens.
    """
    layers = [layer for part in parts for layer in layers_of_experts(part)]
    if not layers:
        return
    for layer, counts in zip(layers, _counts(layers, meshes), strict=True):
        total = counts.sum()
        if layer.expert_bias is not None and layer.config.bias_rate is not None:
            # Of integers: at the mean it must be 0.
            direction = (total - counts * len(counts)).sign().to(layer.expert_bias.dtype)
            layer.expert_bias.add_((direction - direction.mean()) * layer.config.bias_rate)
        if layer.load is not None:
            layer.load.copy_(counts * (len(counts) / total.clamp(min=1)))
        layer.tokens_per_expert.zero_()


def layers_of_experts(part: nn.Module) -> Iterator[MoE]:
    """The layers of experts of a model part, in order."""
    return (module for module in part.modules() if isinstance(module, MoE))


def balance_terms(config: MoEConfig | None) -> Mapping[str, float]:
    """The terms of the loss that layers of experts add, with their weights, for ``TrainSpec.terms``."""
    if config is None:
        return {}
    weights = {SEQUENCE_BALANCE: config.sequence_balance, BATCH_BALANCE: config.batch_balance}
    return {name: weight for name, weight in weights.items() if weight}


def _counts(layers: Sequence[MoE], meshes: Meshes) -> list[torch.Tensor]:
    """Each layer's tokens per expert over all processes, in one exchange."""
    sizes = [layer.config.n_experts for layer in layers]
    whole = torch.cat([layer.tokens_per_expert for layer in layers])
    for group in (meshes.loss.get_group(), meshes.batch["tp"].get_group()):
        all_sum(whole, group)
    return list(whole.split(sizes))
