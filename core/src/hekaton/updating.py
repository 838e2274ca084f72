"""What happens once the gradients of a step are there, and good."""

from __future__ import annotations

import torch

from hekaton.assembly import Assembled
from hekaton.spec import SteppingConverter


def update(assembled: Assembled) -> None:
    """Change the parameters: the model's ``before_step``, the optimizers at the rate of the step, and what
    converters keep of the parameters."""
    before_step = assembled.meta.spec.before_step
    if before_step is not None:
        with torch.no_grad():
            before_step(assembled.parts, assembled.meshes)
    assembled.learning_rate.apply()
    for optimizer in assembled.optimizers:
        optimizer.step()
    tell_converters(assembled)


def tell_converters(assembled: Assembled) -> None:
    """Tell converters that the parameters have new values."""
    for converter in assembled.meta.converters:
        if isinstance(converter, SteppingConverter):
            converter.after_step(assembled.parts)
