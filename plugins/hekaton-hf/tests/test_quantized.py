"""8-bit weights in blocks, against the definition of README_WEIGHTS.md of DeepSeek-V3, element by element."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hekaton.errors import CheckpointError
from hekaton_hf.checkpoint import build

FP8 = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
}  # fmt: skip
NAME = "model.layers.0.mlp.up_proj.weight"


def matrix(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(rows, columns, generator=generator).mul(100).to(torch.float8_e4m3fn)
    blocks = ((rows + 127) // 128, (columns + 127) // 128)
    return stored, torch.rand(blocks, generator=generator) + 0.01


def write(folder: Path, tensors: dict[str, torch.Tensor], quantization: object = FP8) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return folder


@pytest.mark.parametrize(("rows", "columns"), [(200, 300), (128, 256), (576, 130), (5, 7)])
def test_each_value_is_the_stored_one_times_the_number_of_its_block(tmp_path, rows, columns):
    stored, scales = matrix(rows, columns)
    norm = torch.randn(7, dtype=torch.bfloat16)
    folder = write(tmp_path / "hf", {NAME: stored, f"{NAME}_scale_inv": scales, "model.norm.weight": norm})
    weights = build(None).open(folder)
    assert set(weights.tensors) == {NAME, "model.norm.weight"}
    read = weights.tensors[NAME]
    assert (read.shape, read.dtype) == ((rows, columns), torch.float32)
    expected = torch.tensor(
        [
            [value * scales[i // 128, j // 128].item() for j, value in enumerate(row)]
            for i, row in enumerate(stored.double().tolist())
        ]
    ).float()
    assert torch.equal(read.read(), expected)
    part = (slice(rows // 3, rows - 1), slice(2, columns // 2 + 1))
    assert torch.equal(read.read(part), expected[part])
    assert torch.equal(weights.tensors["model.norm.weight"].read(), norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{NAME}_scale_inv": None}, f"'{NAME}' is in 8 bits, and '{NAME}_scale_inv' is not there"),
        ({f"{NAME}_scale_inv": torch.ones(1, 3)}, r"is \(1, 3\) of torch.float32, which does not fit"),
        (
            {f"{NAME}_scale_inv": torch.ones(2, 3, dtype=torch.int32)},
            "is .2, 3. of torch.int32, which does not",
        ),
        ({NAME: torch.ones(200, 300)}, f"'{NAME}' has scales, and is torch.float32, not torch.float8_e4m3fn"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path, change, message):
    stored, scales = matrix(200, 300)
    tensors = {NAME: stored, f"{NAME}_scale_inv": scales} | change
    folder = write(tmp_path / "hf", {name: one for name, one in tensors.items() if one is not None})
    with pytest.raises(CheckpointError, match=message):
        build(None).open(folder)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq"}, {**FP8, "fmt": "e5m2"}, {"quant_method": "fp8"}, "fp8",
        {**FP8, "weight_block_size": [128]}, {**FP8, "weight_block_size": [0, 128]},
    ],
)  # fmt: skip
def test_other_quantizations_are_refused(tmp_path, quantization):
    folder = write(tmp_path / "hf", {"model.norm.weight": torch.ones(3)}, quantization)
    with pytest.raises(CheckpointError, match=r"is quantized as .*: that is not known here"):
        build(None).open(folder)
