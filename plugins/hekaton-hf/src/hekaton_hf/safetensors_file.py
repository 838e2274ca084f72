"""Writing one safetensors file, tensor by tensor; the library's own writer wants all of them in memory.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from hekaton.checkpoint.disk.direct import DirectFile
from hekaton.weights import LazyTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


def write_file(file: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write ``tensors``, reading each when it is its turn.

    :raises OSError: when the disk refuses.
    """
    # Wide elements first, as readers that map the file expect them aligned.
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with DirectFile(file) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = tensors[name].read().contiguous()
            stream.write(values.flatten().view(torch.uint8).numpy().data)
            del values
