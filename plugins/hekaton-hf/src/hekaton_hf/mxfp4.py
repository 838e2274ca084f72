"""Reading matrices that are stored in 4 bits with a power of two per 32 values, as OpenAI publishes gpt-oss.

The format: OCP Microscaling Formats (MX) v1.0, MXFP4. In place of ``NAME`` of (experts, columns, rows), as
transformers has it, a folder has ``NAME_blocks``, uint8 of (experts, rows, columns / 32, 16), and
``NAME_scales``, uint8 of (experts, rows, columns / 32). A byte has two values, the first in its lower four
bits: a sign, then one of eight sizes (E2M1). A scale is the exponent of two, with a bias of 127 (E8M0); 255
stands for no number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor
from hekaton.weights.lazy import Region

log = logging.getLogger("hekaton")

BLOCKS, SCALES = "_blocks", "_scales"
SIZE = 32
"""Values that share a scale."""
_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*_SIZES, *(-size for size in _SIZES))
_BIAS, _NO_NUMBER = 127, 255


def decoded(tensors: Mapping[str, LazyTensor], *, what: str) -> dict[str, LazyTensor]:
    """The tensors of a folder, each pair of blocks and scales as one matrix per expert, in float32.

    :raises CheckpointError: for blocks without scales, the reverse, and shapes or types that do not fit.
    """
    whole: dict[str, LazyTensor] = {}
    number = 0
    for name, tensor in tensors.items():
        if name.endswith(BLOCKS):
            number += 1
            stem = name.removesuffix(BLOCKS)
            whole[stem] = _matrices(stem, tensor, tensors.get(stem + SCALES), what=what)
        elif not name.endswith(SCALES):
            whole[name] = tensor
        elif name.removesuffix(SCALES) + BLOCKS not in tensors:
            raise CheckpointError(
                f"{what}: '{name}' is there, and '{name.removesuffix(SCALES)}{BLOCKS}' is not"
            )
    log.info("%s: %d tensors in 4 bits are read as float32", what, number)
    return whole


def _matrices(stem: str, blocks: LazyTensor, scales: LazyTensor | None, *, what: str) -> LazyTensor:
    if scales is None:
        raise CheckpointError(f"{what}: '{stem}{BLOCKS}' is there, and '{stem}{SCALES}' is not")
    bytes_fit = len(blocks.shape) == 4 and blocks.shape[3] == SIZE // 2
    if not bytes_fit or scales.shape != blocks.shape[:3] or {blocks.dtype, scales.dtype} != {torch.uint8}:
        raise CheckpointError(
            f"{what}: '{stem}{BLOCKS}' is {blocks.shape} of {blocks.dtype} and '{stem}{SCALES}' "
            f"{scales.shape} of {scales.dtype}",
            hint=f"both are uint8, of (experts, rows, columns / {SIZE}, {SIZE // 2}) and without the last",
        )
    experts, rows, groups, _ = blocks.shape

    def load(region: Region) -> torch.Tensor:
        which, columns, of_rows = region
        first, last = columns.start // SIZE, -(-columns.stop // SIZE)
        over = (which, of_rows, slice(first, last))
        stored, exponents = blocks.read((*over, slice(0, SIZE // 2))), scales.read(over)
        halves = torch.stack((stored & 0xF, stored >> 4), dim=-1).flatten(-2)
        values = torch.ldexp(torch.tensor(_VALUES)[halves.int()], exponents.int()[..., None] - _BIAS)
        values = values.masked_fill((exponents == _NO_NUMBER)[..., None], float("nan")).flatten(-2)
        start = first * SIZE
        return values[..., columns.start - start : columns.stop - start].transpose(1, 2).contiguous()

    return LazyTensor((experts, groups * SIZE, rows), torch.float32, load)
