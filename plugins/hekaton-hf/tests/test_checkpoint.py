"""The format "hf" by itself: files as the safetensors library has them, shared among processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hekaton.errors import CheckpointError
from hekaton.weights import whole
from hekaton.weights.format import Weights, WriteOptions
from hekaton_hf.checkpoint import HFFormat

INDEX = "model.safetensors.index.json"
TENSORS = {
    "wide": torch.arange(12.0).reshape(3, 4),
    "narrow": torch.arange(5).to(torch.bfloat16),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(3.0),
    "none": torch.empty(0, 4),
    "whole numbers": torch.arange(3),
    "eight bits": torch.arange(4.0).to(torch.float8_e4m3fn),
    "flags": torch.tensor([True, False]),
}
WEIGHTS = Weights(config={}, tensors={name: whole(tensor) for name, tensor in TENSORS.items()})


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    HFFormat().write(tmp_path, WEIGHTS, WriteOptions())
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(same(read[name], tensor) for name, tensor in TENSORS.items())
    assert not (tmp_path / INDEX).exists()


def test_what_the_library_writes_is_read_whole_and_in_part(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"answer": 42}')
    opened = HFFormat().open(tmp_path)
    assert opened.config == {"answer": 42}
    assert opened.tensors.keys() == TENSORS.keys()
    assert all(same(opened.tensors[name].read(), tensor) for name, tensor in TENSORS.items())
    part = (slice(1, 3), slice(1, 2))
    assert torch.equal(opened.tensors["wide"].read(part), TENSORS["wide"][part])


def test_processes_share_the_files(tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        HFFormat().write(tmp_path, WEIGHTS, WriteOptions(max_shard_size=30, rank=rank, ranks=3))
        written = {file.name for file in tmp_path.glob("*.safetensors")}
        if rank == 2:
            assert 0 < len(written) < 3
            assert {file.name for file in tmp_path.iterdir()} == written, "rank 0 writes the rest"
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert set(index["weight_map"].values()) == written
    for name, file in index["weight_map"].items():
        assert same(load_file(tmp_path / file)[name], TENSORS[name])
    assert sum(len(load_file(tmp_path / file)) for file in written) == len(TENSORS)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"neither model.safetensors nor {INDEX}"):
        HFFormat().open(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="a JSON object was expected"):
        HFFormat().open(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.json", INDEX, "model.safetensors"])
@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device", "a folder"])
def test_special_files_are_refused_and_not_opened(kind: str, name: str, tmp_path: Path) -> None:
    HFFormat().write(tmp_path, WEIGHTS, WriteOptions())
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(tmp_path / name)
    elif kind == "a folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"cannot read '.*{name}': it is not a regular file"):
        HFFormat().open(tmp_path)


def test_a_configuration_of_gigabytes_is_refused_by_its_size(tmp_path: Path) -> None:
    HFFormat().write(tmp_path, WEIGHTS, WriteOptions())
    os.truncate(tmp_path / "config.json", 3 << 30)
    with pytest.raises(CheckpointError, match=r"it has 3,221,225,472 bytes, more than 67,108,864"):
        HFFormat().open(tmp_path)
