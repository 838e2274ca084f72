"""Do the modules of a model fill the buffers that they own?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hekaton.building import buffer_owners
from hekaton.spec import TrainSpec

_POISONS = (3.0, -7.0)


def check_buffers(spec: TrainSpec, flavor: str) -> None:
    """Build a flavor without memory, give it memory with anything in it, and let it fill its buffers.

    Every buffer has a module around it with ``reset_buffers()``; these fill all of it, whatever was there,
    keep its shape and type, and leave the parameters alone.

    :raises AssertionError: naming the buffer.
    :raises ConfigError: for a buffer that no module owns.
    """
    what = f"{spec.name} {flavor}"
    first, second = (_filled(spec, flavor, poison) for poison in _POISONS)
    with torch.device("meta"):
        built = dict(spec.model(spec.flavors[flavor]).named_buffers())
    for name, buffer in first.named_buffers():
        like = built[name]
        assert (buffer.shape, buffer.dtype) == (like.shape, like.dtype), (
            f"{what}: reset_buffers() makes '{name}' {tuple(buffer.shape)} of {buffer.dtype}, "
            f"it was built as {tuple(like.shape)} of {like.dtype}"
        )
        other = second.get_buffer(name)
        assert torch.equal(buffer, other), (
            f"{what}: reset_buffers() does not fill '{name}': what was in its memory is still there"
        )
    for model, poison in zip((first, second), _POISONS, strict=True):
        for name, parameter in model.named_parameters():
            assert bool((parameter == poison).all()), (
                f"{what}: reset_buffers() changes the parameter '{name}'"
            )


@torch.no_grad()
def _filled(spec: TrainSpec, flavor: str, poison: float) -> nn.Module:
    with torch.device("meta"):
        model = spec.model(spec.flavors[flavor])
    owners = buffer_owners(model, what=f"{spec.name} {flavor}")
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(poison)
    owner: Any
    for owner in owners:
        owner.reset_buffers()
    return model
