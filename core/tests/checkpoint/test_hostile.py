"""Nothing that is loaded may run code: forged checkpoints, their checksums in order."""

from __future__ import annotations

import dataclasses
import enum
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, BytesStorageMetadata, Metadata

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.manifest import FileRecord, Manifest, NotWhole, read_metadata
from hekaton.errors import CheckpointError

Make = Callable[..., CheckpointManager]
Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]


class Payload:
    """Unpickled without care, it runs a command that leaves a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What the payload leaves where it runs; it is shown to work first."""
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()
    proof.unlink()
    return proof


@pytest.fixture
def step(folder: Path, manager: Make, parts: Parts) -> Path:
    manager().save(1, parts(1.0), {})
    return folder / "step-1"


@pytest.fixture
def sign_again(signed: Callable[..., None]) -> Callable[[Path], None]:
    """Of format 2, which says nowhere but in ``.metadata`` where a tensor is."""
    return lambda step: signed(step, version=2)


def honest_metadata(step: Path) -> Metadata:
    metadata = pickle.loads((step / ".metadata").read_bytes())
    assert isinstance(metadata, Metadata)
    return metadata


def refusal(make: Make, parts: Parts) -> str:
    with pytest.raises(CheckpointError, match="none of the checkpoints") as error:
        make().load(parts(0.0))
    return str(error.value)


def test_a_payload_as_metadata_does_not_run(
    step: Path, proof: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    (step / ".metadata").write_bytes(pickle.dumps(Payload(proof)))
    sign_again(step)
    assert ".metadata asks for posix.system, which no tensor needs: refused" in refusal(manager, parts)
    assert not proof.exists()


@pytest.mark.parametrize("place", ["planner_data", "storage_meta", "version", "state_dict_metadata"])
def test_a_payload_inside_metadata_does_not_run(
    place: str, step: Path, proof: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    forged = dataclasses.replace(honest_metadata(step), **{place: {"norm.weight": Payload(proof)}})
    (step / ".metadata").write_bytes(pickle.dumps(forged))
    sign_again(step)
    assert "asks for posix.system" in refusal(manager, parts)
    assert not proof.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "torch.load", "torch.hub.load", "torch.serialization.load",
     "pathlib.Path", "torch.distributed.checkpoint.metadata.os.system",
     "torch.distributed.checkpoint.filesystem.FileSystem"],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 4])
def test_no_other_global_is_admitted(name: str, protocol: int, step: Path) -> None:
    module, _, attribute = name.rpartition(".")
    if "os.system" in name:
        module, attribute = "torch.distributed.checkpoint.metadata", "os.system"
    if protocol == 0:
        forged = f"c{module}\n{attribute}\n.".encode()
    else:
        text = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute))
        forged = b"\x80\x04" + text + b"\x93."
    (step / ".metadata").write_bytes(forged)
    with pytest.raises(NotWhole, match="which no tensor needs: refused"):
        read_metadata(step, [])


def test_an_item_that_is_not_a_tensor_is_refused(
    step: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    """DCP reads such an item with an unrestricted unpickler, so it must not come to that."""
    forged = honest_metadata(step)
    forged.state_dict_metadata["norm.weight"] = BytesStorageMetadata()
    (step / ".metadata").write_bytes(pickle.dumps(forged))
    sign_again(step)
    assert ".metadata lists 'norm.weight', which is not a tensor: refused" in refusal(manager, parts)


@pytest.mark.parametrize("target", ["../step-2/__0_0.distcp", "/etc/hostname", "manifest.json"])
def test_metadata_that_points_outside_the_step_is_refused(
    target: str, step: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    forged = honest_metadata(step)
    next(iter(forged.storage_data.values())).relative_path = target
    (step / ".metadata").write_bytes(pickle.dumps(forged))
    sign_again(step)
    assert f".metadata points to '{target}', not a file of the step" in refusal(manager, parts)


def test_metadata_that_asks_for_transforms_is_refused(
    step: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    forged = honest_metadata(step)
    next(iter(forged.storage_data.values())).transform_descriptors = ["stream.zstd"]
    (step / ".metadata").write_bytes(pickle.dumps(forged))
    sign_again(step)
    assert ".metadata asks for transforms of its files: refused" in refusal(manager, parts)


def test_a_manifest_that_names_files_outside_the_step_is_refused(
    step: Path, manager: Make, parts: Parts
) -> None:
    manifest = Manifest.from_json((step / "manifest.json").read_text())
    files = {**manifest.files, "../../secret": FileRecord(0, "xxh3_128:00")}
    (step / "manifest.json").write_text(dataclasses.replace(manifest, files=files).to_json())
    assert "manifest.json names '../../secret', which is not a file of the step" in refusal(manager, parts)


def test_a_payload_in_place_of_a_tensor_does_not_run(
    step: Path, proof: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    """Every item of the .distcp file becomes a file of torch.save, with the payload as its pickle."""
    honest = honest_metadata(step)
    item = step / "item"
    torch.save(torch.zeros(4), item)
    forged = step / "forged"
    with zipfile.ZipFile(item) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            hostile = name.endswith("data.pkl")
            target.writestr(name, pickle.dumps(Payload(proof), 2) if hostile else source.read(name))
    data = forged.read_bytes()
    torch.load(forged, weights_only=False)
    assert proof.exists(), "the payload works where torch.load trusts it"
    proof.unlink()

    (step / "__0_0.distcp").write_bytes(data)
    for stored in honest.storage_data.values():
        stored.offset, stored.length = 0, len(data)
    (step / ".metadata").write_bytes(pickle.dumps(honest))
    sign_again(step)
    refused = "__0_0.distcp asks for posix.system, which no tensor needs: refused"
    assert refused in refusal(manager, parts)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content", [pickle.dumps({}), b"\x80\x04\x95", b"[" * 200_000, b"null", b'{"files": 1}'], ids=len
)
def test_a_file_that_is_not_a_manifest_is_refused(
    content: bytes, step: Path, manager: Make, parts: Parts
) -> None:
    (step / "manifest.json").write_bytes(content)
    assert "step-1: manifest.json cannot be read: " in refusal(manager, parts)


@pytest.mark.parametrize("name", ["manifest.json", "lock.json"])
def test_a_payload_in_place_of_json_does_not_run(
    name: str, step: Path, proof: Path, manager: Make, parts: Parts
) -> None:
    (step / name if name == "manifest.json" else step.parent / name).write_bytes(pickle.dumps(Payload(proof)))
    mine = manager()
    mine.lock()
    mine.close()
    if name == "manifest.json":
        assert "step-1: manifest.json cannot be read: " in refusal(manager, parts)
    assert not proof.exists()


def test_metadata_that_is_not_a_pickle_is_refused(
    step: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    (step / ".metadata").write_bytes(b"garbled")
    sign_again(step)
    assert "step-1: .metadata contains the pickle opcode GET, which" in refusal(manager, parts)


def test_a_pickle_of_something_else_is_refused_as_metadata(
    step: Path, manager: Make, parts: Parts, sign_again: Callable[[Path], None]
) -> None:
    (step / ".metadata").write_bytes(pickle.dumps({"norm.weight": 1}))
    sign_again(step)
    assert "step-1: .metadata is not the metadata of a checkpoint" in refusal(manager, parts)


class AsPython3110(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.0 to 3.11.3 do: by ``getattr``."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def test_enumerations_as_other_releases_of_python_name_them(step: Path) -> None:
    honest = read_metadata(step, ["__0_0.distcp"])
    with (step / ".metadata").open("r+b") as stream:
        metadata = pickle.load(stream)
        stream.seek(0)
        AsPython3110(stream).dump(metadata)
        stream.truncate()
    assert b"getattr" in (step / ".metadata").read_bytes()
    assert read_metadata(step, ["__0_0.distcp"]) == honest


@pytest.mark.parametrize("owner", [_MEM_FORMAT_ENCODING, Metadata, torch.Size])
def test_no_other_attribute_is_admitted(owner: Any, step: Path) -> None:
    class Attribute:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (owner, "__class__")

    (step / ".metadata").write_bytes(pickle.dumps(Attribute()))
    refused = r"calls builtins\.getattr on something that is no part of a tensor: refused"
    with pytest.raises(NotWhole, match=refused):
        read_metadata(step, [])


def test_all_that_torch_writes_is_admitted(tmp_path: Path) -> None:
    """Metadata as DCP itself writes it, without our writer, of the dtypes that models are kept in."""
    import torch.distributed.checkpoint as dcp

    names = "float64 float32 bfloat16 float16 float8_e4m3fn float8_e5m2 int64 int32 int8 uint8 bool complex64"
    state = {name: torch.empty(3, dtype=getattr(torch, name)) for name in names.split()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "step")
    tensors = read_metadata(tmp_path / "step", ["__0_0.distcp"])
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: name for name in state}
