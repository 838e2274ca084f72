"""What makes a step whole: its manifest, the checksums in it, and metadata that cannot run code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import xxhash

from hekaton.checkpoint.folders import Folder, size_of, words_of

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

FORMAT = 2
MANIFEST = "manifest.json"
METADATA = ".metadata"
MODEL = "model"


class NotWhole(Exception):
    """A step cannot be used; the message says why, in words that follow the name of the step."""


class Unfinished(NotWhole):
    """Saving it was interrupted: there never was such a step."""


@dataclass(frozen=True)
class FileRecord:
    """A file of a step: its size in bytes and a checksum of its content.

    The checksum finds damage; it is no protection from forgers, who can write a manifest too.
    """

    size: int
    checksum: str
    """``xxh3_128:`` or, in steps of format 1, ``sha256:``, and the digest in hexadecimal."""

    def to_json(self) -> dict[str, Any]:
        algorithm, _, digest = self.checksum.partition(":")
        return {"size": self.size, algorithm: digest}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FileRecord:
        """:raises ValueError: when it has no checksum of a known kind."""
        (algorithm,) = set(content) - {"size"}
        if algorithm not in _CHECKSUMS:
            raise ValueError(f"checksums of the kind {algorithm!r} are not known")
        return cls(int(content["size"]), f"{algorithm}:{content[algorithm]}")

    def is_of(self, file: IO[bytes], advance: Callable[[int], None] | None = None) -> bool:
        """Whether the checksum is that of the file, which is read through.

        :param advance: called with the number of bytes of each piece read.
        """
        algorithm, _, digest = self.checksum.partition(":")
        checksum = _CHECKSUMS[algorithm]()
        buffer = memoryview(bytearray(_PIECE))
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            checksum.update(buffer[:size])
            if advance is not None:
                advance(size)
        return bool(checksum.hexdigest() == digest)


class Counted:
    """The record of a file in the making."""

    def __init__(self) -> None:
        self.size = 0
        self._checksum = xxhash.xxh3_128()

    def add(self, piece: memoryview) -> None:
        self.size += len(piece)
        self._checksum.update(piece)

    def record(self) -> FileRecord:
        return FileRecord(self.size, f"xxh3_128:{self._checksum.hexdigest()}")


_CHECKSUMS: Mapping[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
_PIECE = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """Everything about a step that is not a tensor. A step exists once its manifest does."""

    step: int
    good: bool
    """Whether loss and weights were finite; a step that is not good is resumed from only by its number."""
    saved_at: str
    """UTC, ISO 8601."""
    processes: int
    versions: Mapping[str, str]
    parts: tuple[str, ...]
    """The kinds of tensors in it. Keys of all but ``model`` begin with the name of their part."""
    describe: Mapping[str, Any]
    """The resolved configuration, name and flavor of the model, layout."""
    info: Mapping[str, Any]
    """State of the run that is not a tensor."""
    files: Mapping[str, FileRecord]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.files.values())

    @property
    def model_only(self) -> bool:
        """Whether it is a model alone, as a last or a seed checkpoint may be."""
        return self.parts == (MODEL,)

    def to_json(self) -> str:
        files = {name: record.to_json() for name, record in self.files.items()}
        content = json.loads(json.dumps({"format": FORMAT, **asdict(self), "files": files}))
        return json.dumps({**content, "sha256": _digest_of(content)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """:raises NotWhole: when it was cut short or changed, or is of a later format."""
        try:
            content = json.loads(text)
            written = content.pop("sha256")
            version = content.pop("format")
            if version > FORMAT:
                raise NotWhole(f"{MANIFEST} is of format {version}, this version of hekaton reads {FORMAT}")
            if written != _digest_of({"format": version, **content}):
                raise NotWhole(f"{MANIFEST} was changed after it was written: its checksum differs")
            files = {name: FileRecord.from_json(record) for name, record in content.pop("files").items()}
            manifest = cls(**content | {"parts": tuple(content["parts"]), "files": files})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise NotWhole(f"{MANIFEST} cannot be read: {error}") from error
        for name in files:
            if Path(name).name != name:
                raise NotWhole(f"{MANIFEST} names {name!r}, which is not a file of the step")
        return manifest


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_step(folder: Folder, manifest: Manifest, step: int | None) -> None:
    """Check all of a step that takes no reading of tensors.

    :param step: the number that it must have.
    :raises NotWhole: when the folder was renamed, or a file is missing or of another size.
    """
    if step is not None and manifest.step != step:
        raise NotWhole(f"it holds step {manifest.step}: the folder was renamed")
    check_sizes(folder, manifest.files)
    if METADATA not in manifest.files:
        raise NotWhole(f"its manifest does not name {METADATA}")


def check_sizes(folder: Folder, files: Mapping[str, FileRecord]) -> None:
    """:raises NotWhole: naming the first file that is missing or of another size."""
    for name, record in files.items():
        try:
            size = size_of(folder / name)
        except FileNotFoundError:
            raise NotWhole(f"{name} is missing") from None
        except OSError as error:
            raise NotWhole(f"{name} cannot be read: {words_of(error)}") from error
        if size != record.size:
            raise NotWhole(f"{name} has {size:,} bytes instead of {record.size:,}")


def check_contents(
    folder: Folder,
    files: Mapping[str, FileRecord],
    names: Iterable[str],
    advance: Callable[[int], None] | None = None,
) -> str | None:
    """Read the named files through; say what is wrong with the first that differs from its checksum."""
    for name in names:
        try:
            with (folder / name).open("rb") as stream:
                same = files[name].is_of(stream, advance)
        except OSError as error:
            return f"{name} cannot be read: {words_of(error)}"
        if not same:
            return f"{name} was changed or damaged: its checksum differs"
    return None


def shared_out(files: Mapping[str, FileRecord], ranks: int) -> list[list[str]]:
    """The names of the files, shared among the ranks so that each has about as many bytes to read."""
    shares: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        lightest = loads.index(min(loads))
        shares[lightest].append(name)
        loads[lightest] += files[name].size
    return shares


_DCP = "torch.distributed.checkpoint"
_ADMITTED = {
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # where Python 3.13 keeps it
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    f"{_DCP}.filesystem": {"_StorageInfo"},
    f"{_DCP}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


class _Unpickler(pickle.Unpickler):
    """Reads the pickle of DCP's metadata: admits the classes that describe tensors, and no other global."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _ADMITTED.get(module, ()):
            return super().find_class(module, name)
        raise NotWhole(f"{METADATA} asks for {module}.{name}, which no tensor needs: refused")


def _memory_format(owner: Any, name: str) -> Any:
    """In place of ``getattr``, by which early releases of Python 3.11 name the member of an enumeration."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    if owner is _MEM_FORMAT_ENCODING and name in _MEM_FORMAT_ENCODING.__members__:
        return _MEM_FORMAT_ENCODING[name]
    raise NotWhole(f"{METADATA} asks for the attribute {name!r} of {owner!r}, which no tensor needs: refused")


def read_metadata(folder: Folder, files: Iterable[str], *, leave_out_others: bool = False) -> Metadata:
    """Read DCP's ``.metadata`` without running any code that it names.

    :param files: the files that it may point to.
    :param leave_out_others: leave out what is not a tensor, instead of refusing the whole.
    :raises NotWhole: when it asks for anything else, cannot be read, or holds what is not a tensor.
    """
    import torch
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    known = set(files)
    try:
        with (folder / METADATA).open("rb") as stream:
            metadata = _Unpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise NotWhole(f"{METADATA} is not the metadata of a checkpoint")
        for key, item in list(metadata.state_dict_metadata.items()):
            if not isinstance(item, TensorStorageMetadata):
                if leave_out_others:
                    del metadata.state_dict_metadata[key]
                    continue
                raise NotWhole(f"{METADATA} lists {key!r}, which is not a tensor: refused")
            if not (isinstance(item.size, torch.Size) and isinstance(item.properties.dtype, torch.dtype)):
                raise NotWhole(f"{METADATA} does not describe {key!r} as a tensor")
        for stored in (metadata.storage_data or {}).values():
            if stored.relative_path not in known:
                raise NotWhole(f"{METADATA} points to {stored.relative_path!r}, not a file of the step")
            if stored.transform_descriptors:
                raise NotWhole(f"{METADATA} asks for transforms of its files: refused")
    except NotWhole:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise NotWhole(f"{METADATA} cannot be read: {type(error).__name__}: {error}") from error
    return metadata
