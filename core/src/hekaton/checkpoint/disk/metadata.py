"""DCP's ``.metadata``, a pickle, read as plain data: which tensor is where."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from hekaton.checkpoint.disk.pickled import Call, Instance, Name, Table, Vocabulary, read_pickle
from hekaton.checkpoint.disk.stored import (
    NotDescribed,
    StoredTensor,
    dtypes,
    not_a_tensor,
    shown,
    stored_tensor,
)

_DCP = "torch.distributed.checkpoint"
_CLASSES = f"{_DCP}.metadata"
_MEMORY_FORMAT = f"{_CLASSES}._MEM_FORMAT_ENCODING"
_MEMORY_FORMATS = ("TORCH_CONTIGUOUS_FORMAT", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT")
_SIZE = "torch.Size"

_FIELDS: Mapping[str, frozenset[str]] = {
    f"{_CLASSES}.Metadata": frozenset(
        {"state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version"}
    ),
    f"{_CLASSES}.TensorStorageMetadata": frozenset({"properties", "size", "chunks"}),
    f"{_CLASSES}.ChunkStorageMetadata": frozenset({"offsets", "sizes"}),
    f"{_CLASSES}.MetadataIndex": frozenset({"fqn", "offset", "index"}),
    f"{_CLASSES}.StorageMeta": frozenset({"checkpoint_id", "save_id", "load_id", "modules"}),
    f"{_DCP}.filesystem._StorageInfo": frozenset(
        {"relative_path", "offset", "length", "transform_descriptors"}
    ),
}
"""The classes whose objects have named fields."""
_PROPERTIES = f"{_CLASSES}.TensorProperties"
_BYTES = f"{_CLASSES}.BytesStorageMetadata"


def stored_tensors(data: bytes, *, leave_out_others: bool) -> dict[str, StoredTensor]:
    """What a stream says of the tensors of a step.

    :param leave_out_others: leave out what is not a tensor, instead of refusing the whole.
    :raises NotPlain: when it is broken, or asks for anything that no tensor needs.
    :raises NotDescribed: when it does not describe tensors.
    """
    metadata = read_pickle(data, vocabulary())
    if not isinstance(metadata, Instance) or metadata.of != f"{_CLASSES}.Metadata":
        raise NotDescribed("is not the metadata of a checkpoint")
    fields = _fields(metadata, "Metadata")
    if not fields.keys() >= {"state_dict_metadata", "storage_data"}:
        raise NotDescribed("is not the metadata of a checkpoint")
    places = _places(fields["storage_data"])
    tensors = {}
    for name, item in _pairs(fields["state_dict_metadata"]):
        if isinstance(item, Instance) and item.of == f"{_CLASSES}.TensorStorageMetadata":
            tensors[name] = _tensor(name, item, places)
        elif not leave_out_others:
            raise NotDescribed(f"lists {shown(name)}, which is not a tensor: refused")
    return tensors


@functools.cache
def vocabulary() -> Vocabulary:
    """All that DCP's metadata asks for."""
    # Where the checkpoint was first; Python 3.13 keeps the classes in a module of their own.
    modules = ("pathlib", "pathlib._local")
    paths = [f"{module}.{name}" for module in modules for name in ("PosixPath", "WindowsPath")]
    return Vocabulary(
        functions={
            _SIZE: _is_sizes,
            _MEMORY_FORMAT: lambda given: len(given) == 1 and type(given[0]) is int and 0 <= given[0] < 3,
            # Python 3.11.0 to 3.11.3 name a member of an enumeration in this way.
            "builtins.getattr": lambda given: (
                len(given) == 2
                and isinstance(given[0], Name)
                and given[0].path == _MEMORY_FORMAT
                and isinstance(given[1], str)
                and given[1] in _MEMORY_FORMATS
            ),
            "torch.serialization._get_layout": lambda given: len(given) == 1 and isinstance(given[0], str),
            **dict.fromkeys(paths, _all_text),
        },
        classes=frozenset({*_FIELDS, _PROPERTIES, _BYTES}),
        constants=frozenset(f"torch.{name}" for name in dtypes()),
    )


def _all_text(arguments: tuple[Any, ...]) -> bool:
    return all(isinstance(argument, str) for argument in arguments)


def _is_sizes(arguments: tuple[Any, ...]) -> bool:
    """Whether they are those of ``torch.Size``: one sequence of integers."""
    return (
        len(arguments) == 1
        and isinstance(arguments[0], tuple)
        and all(type(size) is int for size in arguments[0])
    )


def _tensor(name: Any, item: Instance, places: Mapping[Any, tuple[Any, ...]]) -> StoredTensor:
    fields = _fields(item, name, {"properties", "size", "chunks"})
    chunks = fields["chunks"]
    if not isinstance(chunks, list):
        raise NotDescribed(not_a_tensor(name))
    boxes = []
    for chunk in chunks:
        of_chunk = _fields(_instance(chunk, "ChunkStorageMetadata", name), name, {"offsets", "sizes"})
        offsets, sizes = _size(of_chunk["offsets"], name), _size(of_chunk["sizes"], name)
        if (name, offsets) not in places:
            raise NotDescribed(f"does not say where {shown(name)} is")
        boxes.append((*places[name, offsets], offsets, sizes))
    return stored_tensor(name, _dtype(fields["properties"], name), _size(fields["size"], name), boxes)


def _dtype(properties: Any, name: Any) -> str:
    state = _instance(properties, "TensorProperties", name).state
    if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[0], Name)):
        raise NotDescribed(not_a_tensor(name))
    layout = state[1]
    if not isinstance(layout, Call) or layout.arguments != ("torch.strided",):
        raise NotDescribed(f"describes {shown(name)} as a tensor that is not dense")
    return state[0].path.removeprefix("torch.")


def _places(storage_data: Any) -> dict[Any, tuple[Any, ...]]:
    """File, start and length of each item, by the name of the tensor and its offsets there."""
    places: dict[Any, tuple[Any, ...]] = {}
    for key, value in _pairs(storage_data, text=False):
        index = _fields(_instance(key, "MetadataIndex", None), None, {"fqn"})
        stored = _instance(value, "filesystem._StorageInfo", index["fqn"])
        place = _fields(stored, index["fqn"], {"relative_path", "offset", "length"})
        if place.get("transform_descriptors") not in (None, []):
            raise NotDescribed("asks for transforms of its files: refused")
        if not isinstance(index["fqn"], str):
            raise NotDescribed(not_a_tensor(None))
        offset = index.get("offset")
        offsets = () if offset is None else _size(offset, index["fqn"])
        places[index["fqn"], offsets] = (place["relative_path"], place["offset"], place["length"])
    return places


def _size(value: Any, name: Any) -> tuple[int, ...]:
    if not isinstance(value, Call) or value.function != _SIZE:
        raise NotDescribed(not_a_tensor(name))
    sizes: tuple[int, ...] = value.arguments[0]
    return sizes


def _instance(value: Any, of: str, name: Any) -> Instance:
    path = f"{_DCP}.{of}" if "." in of else f"{_CLASSES}.{of}"
    if not isinstance(value, Instance) or value.of != path:
        raise NotDescribed(not_a_tensor(name))
    return value


def _fields(instance: Instance, name: Any, needed: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """The fields of an object: each once, none that its class does not have."""
    fields = dict(_pairs(instance.state))
    if not needed <= fields.keys():
        raise NotDescribed(not_a_tensor(name))
    for unknown in sorted(fields.keys() - _FIELDS[instance.of]):
        raise NotDescribed(f"has a field {shown(unknown)}, which this version of hekaton does not know")
    return fields


def _pairs(table: Any, *, text: bool = True) -> list[tuple[Any, Any]]:
    """The pairs of a dict, whose keys are text unless said otherwise; none twice."""
    if not isinstance(table, Table):
        raise NotDescribed("is not the metadata of a checkpoint")
    if text:
        if not all(isinstance(key, str) for key, _ in table.pairs):
            raise NotDescribed("is not the metadata of a checkpoint")
        if len({key for key, _ in table.pairs}) != len(table.pairs):
            raise NotDescribed("is not the metadata of a checkpoint")
    return table.pairs
