"""What a configuration check can see of a run with a dispatcher of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hekaton.errors import HekatonError

if TYPE_CHECKING:
    from hekaton.rules import Run


def dispatcher_sends_the_precision(run: Run) -> Iterator[HekatonError]:
    """The dispatcher of the experts sends what the layers compute in."""
    config = run.config
    if config.expert_dispatcher() != "deepep" or config.parallelism.expert_parallel_degree < 2:
        return
    import torch

    from hekaton_parallel.deepep import DeepEP

    given = config.training.mixed_precision_param
    if getattr(torch, given) not in DeepEP.types:
        yield run.violation(
            f"the dispatcher deepep sends bfloat16, and the layers compute in {given}",
            "training.mixed_precision_param",
            "parallelism.expert_dispatcher",
            hint='choose training.mixed_precision_param = "bfloat16" or parallelism.expert_dispatcher = '
            '"alltoall"',
        )
