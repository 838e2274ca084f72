"""Values in another precision: the same, rounded, or an error where it has no number for them."""

from __future__ import annotations

import torch

from hekaton.errors import CheckpointError


def in_precision(values: torch.Tensor, dtype: torch.dtype, *, what: str = "a tensor") -> torch.Tensor:
    """The values in another floating-point precision; what is not floating-point stays as it is.

    :param what: the tensor, for the message.
    :raises CheckpointError: for a finite value that would become infinite.
    """
    if values.dtype == dtype or not values.is_floating_point():
        return values
    result = values.to(dtype)
    if not dtype.is_floating_point or torch.finfo(dtype).max >= torch.finfo(values.dtype).max:
        return result
    # Formats without an infinity, such as float8_e4m3fn, have a NaN in its place.
    wide = result.float() if dtype.itemsize == 1 else result
    if not bool(wide.isfinite().all()):
        lost = values.isfinite() & ~wide.isfinite()
        if bool(lost.any()):
            raise CheckpointError(
                f"{what} has a value of {values[values.isfinite()].abs().max().item():g}, and "
                f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:g}",
                hint="choose another precision",
            )
    return result
