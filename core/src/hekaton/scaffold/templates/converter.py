"""The converter: changes the freshly built model, before it is parallelised."""

from __future__ import annotations

import torch
from torch import nn

from hekaton.draft import Draft
from hekaton.errors import ConfigError
from hekaton.mesh import ParallelDims
from hekaton.scaffold.templates.settings import ConverterSection


class BoundedLinear(nn.Linear):
    """A linear layer whose outputs stay between -cap and cap (Gemma 2, section 2)."""

    cap: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(super().forward(x) / self.cap)


class BoundLogits:
    """Makes a linear layer a bounded one. Its parameters keep their names, so that checkpoints fit."""

    def __init__(self, section: ConverterSection) -> None:
        self.section = section

    def convert(self, draft: Draft) -> Draft:
        """:param draft: the model on the meta device, its plan and its init table."""
        layer = dict(draft.model.named_modules()).get(self.section.module)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(f"{draft.what} has no linear layer '{self.section.module}'")
        bounded: nn.Module = layer
        bounded.__class__ = BoundedLinear
        bounded.cap = self.section.cap  # type: ignore[assignment]
        return draft


def build(section: ConverterSection, dims: ParallelDims) -> BoundLogits:
    """:param dims: the degrees of parallelism of the run."""
    return BoundLogits(section)
