"""A model that counts what passes through it, and evens it out with a bias; right, and wrong in several ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from hekaton.init import Normal
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton.recomputation import is_recomputed
from hekaton.spec import TrainSpec

CHOICES = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """:param fault: what is wrong with the model, if anything."""

    fault: str = ""
    dim: int = 8
    n_layers: int = 2
    vocab_size: int = 12


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fault = config.fault
        self.linear = nn.Linear(config.dim, config.dim, bias=False)
        self.register_buffer("bias", torch.empty(CHOICES))
        self.register_buffer("counts", torch.empty(CHOICES, dtype=torch.long), persistent=False)

    def reset_buffers(self) -> None:
        self.bias.zero_()
        self.counts.zero_()

    def forward(self, x):
        with torch.no_grad():
            choice = (x[..., :CHOICES] + self.bias).argmax(-1)
            chosen = nn.functional.one_hot(choice, CHOICES).sum((0, 1))
            if self.fault == "keeps the last microbatch":
                self.counts.copy_(chosen)
            elif self.training and (self.fault == "counts twice" or not is_recomputed()):
                self.counts += chosen
        if self.fault == "drops layers" and self.training:
            return x + torch.rand(()) * self.linear(x)
        return x + (1.0 + choice.to(x.dtype)).unsqueeze(-1) * self.linear(x)


class Counting(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, tokens, positions=None, documents=None):
        x = tokens if self.embedding is None else self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x if self.output is None else self.output(x)


def even_out(parts, meshes) -> None:
    for layer in (module for part in parts for module in part.modules() if isinstance(module, Layer)):
        if layer.fault != "does not sum":
            dist.all_reduce(layer.counts, group=meshes.loss.get_group())
        layer.bias += (layer.counts.float().mean() - layer.counts) / 64
        if layer.fault != "does not reset":
            layer.counts.zero_()


FAULTS = {
    "keeps the last microbatch": "on one process: in two microbatches: the buffer 'layers.0.bias' differs",
    "counts twice": "on one process: with blocks recomputed: the buffer 'layers.0.bias' differs",
    "does not sum": "under shard2: the buffer 'layers.0.bias' differs after before_step: is it summed",
    "does not reset": "under shard2: the buffer 'layers.0.bias' differs",
}

spec = TrainSpec(
    name="counting",
    model=Counting,
    flavors={
        "sound": Config(),
        "drops layers": Config(fault="drops layers"),
        **{fault: Config(fault=fault) for fault in FAULTS},
    },
    plan=lambda config: ParallelPlan(
        block="layers.*", stages=Stages(first=["embedding"], layers="layers", last=["output"])
    ),
    init=lambda config: {"**.weight": Normal(0.5)},
    before_step=even_out,
)
