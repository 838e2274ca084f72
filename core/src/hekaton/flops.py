"""How many operations a model's training takes, and how many a device can do: for TFLOP/s and MFU."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from hekaton.meta import on_meta

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.building import MetaModel
    from hekaton.data.loader import Loader

PEAK_TFLOPS = {  # of dense products in bf16, by the data sheets of the vendors
    "A100": 312.0,  # "A100 Tensor Core GPU": 624 with sparsity
    "A10": 125.0,  # "A10 Tensor Core GPU": 250 with sparsity
    "A40": 149.7,  # "A40": 299.4 with sparsity
    "H100": 989.0,  # "H100 Tensor Core GPU", SXM: 1,979 with sparsity
    "H100 NVL": 835.0,  # the same, NVL: 1,671 with sparsity
    "H100 PCIe": 756.0,  # the same, PCIe: 1,513 with sparsity
    "H200": 989.0,  # "H200 Tensor Core GPU", SXM: 1,979 with sparsity
    "H200 NVL": 835.0,  # the same, NVL: 1,671 with sparsity
    "GH200": 989.0,  # "GH200 Grace Hopper Superchip": 1,979 with sparsity
    "B200": 2250.0,  # "DGX B200": 36,000 of eight, with sparsity
    "GB200": 2500.0,  # "GB200 NVL72": 360,000 of 72, with sparsity
    "L4": 121.0,  # "L4 Tensor Core GPU": 242 with sparsity
    "L40S": 362.0,  # "L40S": 733 with sparsity, 362.05 without
    "MI250X": 191.5,  # "AMD Instinct MI250X": 383, of the two devices of a card
    "MI300X": 1307.0,  # "AMD Instinct MI300X": 1,307.4
    "MI325X": 1307.0,  # "AMD Instinct MI325X": 1,307.4
}
"""Words of a device's name -> peak in TFLOP/s; the longest that is found counts."""


def peak_tflops(device: torch.device) -> float | None:
    """The device's peak in bf16, ``None`` where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = [words for words in PEAK_TFLOPS if re.search(rf"\b{words}\b", name)]
    return PEAK_TFLOPS[max(found, key=len)] if found else None


def counted_flops(meta: MetaModel, shapes: Mapping[str, Sequence[int]], *, seq_len: int) -> float | None:
    """Operations of forward and backward, per unit of work, or per row where the model has a
    ``flops_per_row``; ``None`` where it does not say.

    :param meta: before it is parallelised.
    :param shapes: of the objective's inputs, for a row.
    """
    spec = meta.spec
    if spec.flops_per_unit is not None:
        flops = spec.flops_per_unit(meta.config, seq_len)
    elif spec.flops_per_row is not None:
        flops = spec.flops_per_row(meta.config, shapes)
    else:
        return None
    changed = _by_converters(meta, shapes) if meta.converters else 0.0
    return flops + changed if changed else flops if changed is not None else None


def flops_per_unit(assembled: Assembled, loader: Loader) -> float | None:
    """:func:`counted_flops`, per unit of work."""
    per_row = assembled.meta.spec.flops_per_unit is None
    return assembled.flops / loader.units_per_row if per_row and assembled.flops else assembled.flops


def _by_converters(meta: MetaModel, shapes: Mapping[str, Sequence[int]]) -> float | None:
    """What converters change: of 6 operations per parameter, the gradient of a weight is 2. ``None`` where
    they change something and the model does not say what is multiplied."""
    own = {name for name, _ in on_meta(meta.spec, meta.config).named_parameters(remove_duplicate=False)}
    parameters = dict(meta.model.named_parameters(remove_duplicate=False))
    if own == parameters.keys() and all(one.requires_grad for one in parameters.values()):
        return 0.0
    if meta.spec.multiplied is None:
        return None
    changed = 0.0
    for name, times in meta.spec.multiplied(meta.model, shapes).items():
        operations = (6 if parameters[name].requires_grad else 4) - (6 if name in own else 0)
        changed += operations * times * parameters[name].numel()
    return changed


def is_flops(value: object) -> bool:
    """Whether a number of operations can be: what ``TrainSpec.flops_per_unit`` must give."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
