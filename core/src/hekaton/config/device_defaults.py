"""Defaults that depend on the device."""

from __future__ import annotations

import dataclasses

from hekaton.config.loading import Loaded
from hekaton.processor import has_fast_bfloat16

PRECISION = "training.mixed_precision_param"


def for_device(loaded: Loaded, device_type: str) -> Loaded:
    """The configuration on a device: float32 is the default on a CPU that is slow in bfloat16.

    What the user sets stays, and so do weights in bfloat16, which somebody asked for.
    """
    training = loaded.config.training
    slow = device_type == "cpu" and not has_fast_bfloat16()
    if not slow or PRECISION in loaded.origins or training.dtype == "bfloat16":
        return loaded
    notice = (
        f"{PRECISION} is float32 by default on this CPU, which has no instructions for bfloat16 "
        "(AVX512-BF16, AMX)"
    )
    training = training.model_copy(update={"mixed_precision_param": "float32"})
    config = loaded.config.model_copy(update={"training": training})
    return dataclasses.replace(loaded, config=config, notices=(*loaded.notices, notice))
