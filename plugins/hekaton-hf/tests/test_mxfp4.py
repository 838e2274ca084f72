"""4-bit weights against the definition of OCP Microscaling Formats v1.0, element by element."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hekaton.errors import CheckpointError
from hekaton_hf.checkpoint import build

NAME = "model.layers.0.mlp.experts.down_proj"
EXPERTS, ROWS, GROUPS = 2, 5, 3


def stored() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (EXPERTS, ROWS, GROUPS, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 150, (EXPERTS, ROWS, GROUPS), generator=generator, dtype=torch.uint8)
    scales[0, 0, 0], scales[0, 1, 0], scales[1, 4, 2] = 0, 255, 253
    return {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}


def e2m1(bits: int) -> float:
    """Sign, two bits of exponent with a bias of 1, one of mantissa; an exponent of 0 has no leading 1."""
    sign, exponent, mantissa = bits >> 3, (bits >> 1) & 3, bits & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return -size if sign else size


def defined(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(experts, columns, rows): as transformers has the matrix."""
    blocks, scales = (tensors[f"{NAME}_{what}"].tolist() for what in ("blocks", "scales"))
    whole = torch.empty(EXPERTS, GROUPS * 32, ROWS, dtype=torch.float64)
    for expert in range(EXPERTS):
        for row in range(ROWS):
            for column in range(GROUPS * 32):
                group, place = divmod(column, 32)
                byte = blocks[expert][row][group][place // 2]
                scale = scales[expert][row][group]
                factor = math.nan if scale == 255 else 2.0 ** (scale - 127)
                whole[expert, column, row] = e2m1(byte >> 4 if place % 2 else byte & 15) * factor
    return whole.float()


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    said = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_each_value_is_its_four_bits_times_the_power_of_its_block(tmp_path: Path) -> None:
    bias = torch.randn(EXPERTS, ROWS, dtype=torch.bfloat16)
    tensors = stored()
    weights = build(None).open(write(tmp_path / "hf", tensors | {f"{NAME}_bias": bias}))
    assert set(weights.tensors) == {NAME, f"{NAME}_bias"}
    read, expected = weights.tensors[NAME], defined(tensors)
    assert (read.shape, read.dtype) == ((EXPERTS, GROUPS * 32, ROWS), torch.float32)
    torch.testing.assert_close(read.read(), expected, rtol=0, atol=0, equal_nan=True)
    for columns in (slice(0, 32), slice(31, 33), slice(40, 95)):
        part = (slice(1, 2), columns, slice(1, 4))
        torch.testing.assert_close(read.read(part), expected[part], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(weights.tensors[f"{NAME}_bias"].read(), bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{NAME}_scales": None}, f"'{NAME}_blocks' is there, and '{NAME}_scales' is not"),
        ({f"{NAME}_blocks": None}, f"'{NAME}_scales' is there, and '{NAME}_blocks' is not"),
        ({f"{NAME}_scales": torch.zeros(2, 5, 2, dtype=torch.uint8)}, r"_scales' \(2, 5, 2\) of torch.uint8"),
        ({f"{NAME}_scales": torch.zeros(2, 5, 3)}, r"_scales' \(2, 5, 3\) of torch.float32"),
        ({f"{NAME}_blocks": torch.zeros(2, 5, 48, dtype=torch.uint8)}, r"_blocks' is \(2, 5, 48\) of"),
    ],
)
def test_blocks_and_scales_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: one for name, one in (stored() | change).items() if one is not None}
    with pytest.raises(CheckpointError, match=message):
        build(None).open(write(tmp_path / "hf", tensors))
