"""The parallel style: what tensor parallel does to a module that a plan gives it to."""

from __future__ import annotations

from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle

from hekaton.parallel.tensor import TensorContext


def build(section: None, context: TensorContext) -> ParallelStyle:
    """A linear layer sharded by its outputs, which every rank then has as between other modules of a plan:
    its part of the sequence under sequence parallel, and the whole otherwise."""
    between = Shard(1) if context.sequence_parallel else Replicate()
    return ColwiseParallel(input_layouts=between, output_layouts=between)
