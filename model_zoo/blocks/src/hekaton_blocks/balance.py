"""What the layers of experts do once per optimizer step, and what they report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hekaton.distributed import all_sum
from hekaton.mesh import Meshes
from hekaton_blocks.moe import BATCH_BALANCE, SEQUENCE_BALANCE, MoE
from hekaton_blocks.routing import MoEConfig

GROUPS = 4
"""Groups of layers that are reported apart."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def update_experts(parts: Sequence[nn.Module], meshes: Meshes) -> None:
    """Move each expert's bias against its load in the step, for ``TrainSpec.before_step``.

    ``bias += rate * (sign(mean - count) - mean of these signs)``, in place, as torchtitan does (Wang et al.,
    2024, subtract no mean; it keeps the biases from drifting together and changes no choice). Counts are
    those of all processes that saw other tokens.
    """
    layers = [layer for part in parts for layer in layers_of_experts(part)]
    if not layers:
        return
    for layer, both in zip(layers, _counts(layers, meshes), strict=True):
        counts, handled = both[:-1], both[-1]
        total = counts.sum()
        layer.last_step = (counts.max() * len(counts) / total.clamp(min=1), total - handled // layer.copies)
        if layer.expert_bias is not None and layer.config.bias_rate is not None:
            # Of integers: at the mean it must be 0.
            direction = (total - counts * len(counts)).sign().to(layer.expert_bias.dtype)
            layer.expert_bias.add_((direction - direction.mean()) * layer.config.bias_rate)
        if layer.load is not None:
            layer.load.copy_(counts * (len(counts) / total.clamp(min=1)))
        layer.tokens_per_expert.zero_()
        layer.tokens_handled.zero_()


def report_experts(parts: Sequence[nn.Module], meshes: Meshes) -> dict[str, float]:
    """Metrics of the last step's balance, for ``TrainSpec.report``; the same on every rank.

    ``moe/max_load/layers_A-B``: how many times the mean load the busiest expert had, in the worst layer from
    A to B; layers are reported in four groups. ``moe/dropped_tokens``: choices that reached no expert, over
    all layers, which must be 0.
    """
    mine = {
        int(number.group()): tuple(value.item() for value in layer.last_step)
        for part in parts
        for name, layer in part.named_modules()
        if isinstance(layer, MoE) and layer.last_step is not None and (number := _NUMBER.search(name))
    }
    pipeline = meshes.batch["pp"].get_group()
    stages: list[dict[int, tuple[float, ...]]] = [mine]
    if pipeline.size() > 1:
        stages = [{} for _ in range(pipeline.size())]
        dist.all_gather_object(stages, mine, group=pipeline)
    layers = sorted((number, *values) for stage in stages for number, values in stage.items())
    if not layers:
        return {}
    size = -(-len(layers) // GROUPS)
    groups = [layers[start : start + size] for start in range(0, len(layers), size)]
    loads = {
        f"moe/max_load/layers_{group[0][0]}-{group[-1][0]}": max(layer[1] for layer in group)
        for group in groups
    }
    return {**loads, "moe/dropped_tokens": sum(dropped for _, _, dropped in layers)}


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
    """Each layer's tokens per expert over all processes, and what experts were given, in one exchange."""
    sizes = [layer.config.n_experts + 1 for layer in layers]
    whole = torch.cat([one for layer in layers for one in (layer.tokens_per_expert, layer.tokens_handled)])
    for group in (meshes.loss.get_group(), meshes.batch["tp"].get_group()):
        all_sum(whole, group)
    return list(whole.split(sizes))


def hooks_of_experts(experts: Callable[[Any], MoEConfig | None]) -> dict[str, Any]:
    """The fields of a ``TrainSpec`` that a model with experts has.

    :param experts: the configuration of those that the model's layers have, ``None`` for none.
    """
    return {
        "before_step": update_experts,
        "report": report_experts,
        "terms": lambda config: balance_terms(experts(config)),
    }
