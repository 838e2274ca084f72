"""Reading weights that are stored in 8 bits with a scale per block, as DeepSeek publishes V3.

The format: README_WEIGHTS.md of DeepSeek-V3. A matrix is stored as float8_e4m3fn beside a float32 matrix
``NAME_scale_inv``, which has one number per block of 128 x 128; the last blocks of rows and columns may be
partial. A value is the stored one times the number of its block.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor
from hekaton.weights.lazy import Region
from hekaton_hf import mxfp4

log = logging.getLogger("hekaton")

CONFIG_KEY = "quantization_config"
SCALE = "_scale_inv"
_STORED = torch.float8_e4m3fn
_KNOWN = {"quant_method": "fp8", "fmt": "e4m3"}


def decoded(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, Any], *, what: str
) -> dict[str, LazyTensor]:
    """The tensors of a folder, those in 8 or 4 bits as float32.

    :param config: the content of ``config.json``; without ``quantization_config`` tensors are as they are.
    :raises CheckpointError: for another kind of quantization, and for a matrix whose scales are not there or
        not of its shape.
    """
    said = config.get(CONFIG_KEY)
    if said is None:
        return dict(tensors)
    if isinstance(said, Mapping) and said.get("quant_method") == "mxfp4":
        return mxfp4.decoded(tensors, what=what)
    block = _block(said, what=what)
    whole: dict[str, LazyTensor] = {}
    number = 0
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        if tensor.dtype == _STORED:
            number += 1
            tensor = _matrix(name, tensor, tensors.get(name + SCALE), block, what=what)
        elif name + SCALE in tensors:
            raise CheckpointError(f"{what}: '{name}' has scales, and is {tensor.dtype}, not {_STORED}")
        whole[name] = tensor
    log.info("%s: %d tensors in 8 bits are read as float32", what, number)
    return whole


def _block(said: Any, *, what: str) -> tuple[int, int]:
    """Rows and columns of a block."""
    known = isinstance(said, Mapping) and all(said.get(key, its) == its for key, its in _KNOWN.items())
    block = said.get("weight_block_size") if known else None
    sizes = block if isinstance(block, list) else []
    if len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes):
        return sizes[0], sizes[1]
    kind = said.get("quant_method") if isinstance(said, Mapping) else said
    raise CheckpointError(
        f"{what} is quantized as {kind!r}: that is not known here",
        hint='known are quant_method = "mxfp4", and "fp8" with fmt = "e4m3" and weight_block_size = '
        "[rows, columns]",
    )


def _matrix(
    name: str, stored: LazyTensor, scales: LazyTensor | None, block: tuple[int, int], *, what: str
) -> LazyTensor:
    if scales is None:
        raise CheckpointError(f"{what}: '{name}' is in 8 bits, and '{name}{SCALE}' is not there")
    fitting = tuple(-(-size // edge) for size, edge in zip(stored.shape, block, strict=False))
    if len(stored.shape) != 2 or scales.shape != fitting or not scales.dtype.is_floating_point:
        raise CheckpointError(
            f"{what}: '{name}{SCALE}' is {scales.shape} of {scales.dtype}, which does not fit '{name}' of "
            f"{stored.shape} in blocks of {block[0]} x {block[1]}"
        )

    def load(region: Region) -> torch.Tensor:
        first = [part.start // edge for part, edge in zip(region, block, strict=True)]
        over = tuple(
            slice(start, -(-part.stop // edge))
            for start, part, edge in zip(first, region, block, strict=True)
        )
        factors = scales.read(over).float()
        for dim, (start, part, edge) in enumerate(zip(first, region, block, strict=True)):
            of = torch.arange(part.start, part.stop) // edge - start
            factors = factors.index_select(dim, of)
        return stored.read(region).float() * factors

    return LazyTensor(stored.shape, torch.float32, load)
