"""What makes a step whole: its manifest, the checksums in it, and metadata that is data."""

from __future__ import annotations

import hashlib
import json
import platform
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import xxhash

import hekaton
from hekaton.checkpoint.disk.folders import Folder, open_file, read_file, reason_of, size_of
from hekaton.checkpoint.disk.pickled import MAX_BYTES, NotPlain
from hekaton.checkpoint.disk.stored import (
    NotDescribed,
    StoredTensor,
    StoredTensors,
    check_files,
    check_lengths,
    from_json,
    to_json,
)

FORMAT = 3
_WITHOUT_PLACES = 2
"""The last format in which ``.metadata`` alone says where each tensor lies."""
MANIFEST = "manifest.json"
MAX_MANIFEST = 1 << 28
"""Bytes: room for the places of some million pieces of tensors."""
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
    def from_json(cls, content: Any) -> FileRecord:
        """:raises ValueError: when it is no such record, or has no checksum of a known kind."""
        if not isinstance(content, dict) or len(content) != 2 or "size" not in content:
            raise ValueError("an entry of a file is not a size and a checksum")
        (algorithm,) = content.keys() - {"size"}
        if algorithm not in _CHECKSUMS:
            raise ValueError(f"unknown checksum algorithm {algorithm[:40]!r}")
        size, digest = content["size"], content[algorithm]
        is_digest = isinstance(digest, str) and set(digest) <= set(string.hexdigits)
        if type(size) is not int or not 0 <= size < 2**63 or not is_digest:
            raise ValueError("an entry of a file is not a size and a checksum")
        return cls(size, f"{algorithm}:{digest}")

    def new_checksum(self) -> Any:
        """An empty checksum of this record's kind, to be given the content by ``update``."""
        return _CHECKSUMS[self.checksum.partition(":")[0]]()

    def has(self, checksum: Any) -> bool:
        """Whether this is the checksum of the record."""
        return bool(checksum.hexdigest() == self.checksum.partition(":")[2])

    def is_of(self, file: IO[bytes], advance: Callable[[int], None] | None = None) -> bool:
        """Whether the checksum is that of the file, which is read through.

        :param advance: called with the number of bytes of each piece read.
        """
        checksum = self.new_checksum()
        buffer = memoryview(bytearray(_PIECE))
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            checksum.update(buffer[:size])
            if advance is not None:
                advance(size)
        return self.has(checksum)


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
    tensors: StoredTensors | None = None
    """Where each tensor lies; ``None`` in formats 1 and 2, which leave that to ``.metadata``."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.files.values())

    @property
    def model_only(self) -> bool:
        """Whether it is a model alone, as a last or a seed checkpoint may be."""
        return self.parts == (MODEL,)

    def to_json(self) -> str:
        content = {name: getattr(self, name) for name in _FIELDS}
        files = {name: record.to_json() for name, record in self.files.items()}
        version = FORMAT if self.tensors is not None else _WITHOUT_PLACES
        content = json.loads(json.dumps({"format": version, **content, "files": files}))
        if self.tensors is None:
            return json.dumps({**content, "sha256": _digest_of(content)}, indent=1) + "\n"
        tensors = "{}" if not self.tensors else to_json(self.tensors)
        digest = _digest_of(content | {"tensors": json.loads(tensors)})
        # A tensor a line: indented like the rest, each of its numbers would have one.
        text = json.dumps({**content, "sha256": digest}, indent=1)
        return text.removesuffix("\n}") + f',\n "tensors": {tensors}\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """:raises NotWhole: when it was cut short or changed, is of a later format, or of none."""
        try:
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("it is not a table")
            written = content.pop("sha256", None)
            version = content.get("format")
            if type(version) is not int or version < 1:
                raise ValueError("it does not name its format")
            if version > FORMAT:
                raise NotWhole(f"{MANIFEST} is of format {version}, this version of hekaton reads {FORMAT}")
            if written != _digest_of(content):
                raise NotWhole(f"{MANIFEST} was changed after it was written: its checksum differs")
            _check_fields(content, version)
            files = {name: FileRecord.from_json(record) for name, record in content["files"].items()}
        except (ValueError, RecursionError) as error:
            raise NotWhole(f"{MANIFEST} cannot be read: {error}") from error
        for name in files:
            if Path(name).name != name or "\0" in name or not _is_text(name):
                raise NotWhole(f"{MANIFEST} names {name!r}, which is not a file of the step")
        try:
            tensors = from_json(content["tensors"]) if version > _WITHOUT_PLACES else None
        except NotDescribed as error:
            raise NotWhole(f"{MANIFEST} {error}") from error
        fields = {name: content[name] for name in _FIELDS}
        return cls(**fields | {"parts": tuple(content["parts"]), "files": files, "tensors": tensors})


_FIELDS: Mapping[str, type] = {
    "step": int,
    "good": bool,
    "saved_at": str,
    "processes": int,
    "versions": dict,
    "parts": list,
    "describe": dict,
    "info": dict,
}
"""The fields of a manifest beside ``files`` and ``tensors``, and their types in JSON."""
_MAX_DEPTH = 32


def _check_fields(content: Mapping[str, Any], version: int) -> None:
    """:raises ValueError: when a field is missing, unknown, or of another type."""
    types = {
        **_FIELDS,
        "format": int,
        "files": dict,
        **({"tensors": dict} if version > _WITHOUT_PLACES else {}),
    }
    for name in sorted(types.keys() ^ content.keys()):
        raise ValueError(f"its field {name[:40]!r} is {'missing' if name in types else 'not known'}")
    for name, kind in types.items():
        _check_type(name, content[name], kind)
    for name in ("step", "processes"):
        if not 0 <= content[name] < 2**63:
            raise ValueError(f"its {name} is out of range")
    for name in ("versions", "parts"):
        values = content[name].values() if name == "versions" else content[name]
        if not all(isinstance(value, str) and _is_text(value) for value in values):
            raise ValueError(f"its {name} are not text")
    if not _is_text(content["saved_at"]):
        raise ValueError("its saved_at is not text")
    described = {name: content["describe"].get(name) for name in ("model", "flavor")}
    for name, value in described.items():
        if value is not None:
            _check_type(f"describe.{name}", value, str)
    for path in ("layout", "identity", "facts", "config", "config.model", "config.model.overrides"):
        table: Any = content["describe"]
        for name in path.split("."):
            table = table.get(name, {})
            _check_type(f"describe.{path}", table, dict)
    for name in ("describe", "info"):
        _check_values(name, content[name])


def _check_type(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise ValueError(f"its {name} is of type {type(value).__name__} and not {kind.__name__}")


def _is_text(value: str) -> bool:
    """Whether it can be encoded: half of a surrogate pair cannot, and JSON can hold one."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_values(name: str, value: Any) -> None:
    """Refuse what breaks those that copy or print it later: deep nesting, and half of a surrogate pair."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        for one in level:
            for text in [one] if isinstance(one, str) else one if isinstance(one, dict) else ():
                text.encode()  # raises a ValueError
        inner = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        ]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise ValueError(f"its {name} is nested more than {_MAX_DEPTH} deep")


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def written_now() -> dict[str, Any]:
    """The fields of a new manifest that say when and by what it is written."""
    import torch

    return {
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "hekaton": hekaton.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


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
            raise NotWhole(f"{name} cannot be read: {reason_of(error)}") from error
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
            with open_file(folder / name) as stream:
                same = files[name].is_of(stream, advance)
        except OSError as error:
            return f"{name} cannot be read: {reason_of(error)}"
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


def stored_in(folder: Folder, manifest: Manifest) -> StoredTensors:
    """Which tensor of a step is where: as its manifest says or, in older formats, ``.metadata``.

    :raises NotWhole: when it is not said, or not of tensors in the files of the step.
    """
    if manifest.tensors is None:
        return check_within_files(METADATA, read_metadata(folder, manifest.files), manifest.files)
    return check_within_files(MANIFEST, manifest.tensors, manifest.files)


def read_metadata(
    folder: Folder, files: Collection[str], *, leave_out_others: bool = False
) -> dict[str, StoredTensor]:
    """Read DCP's ``.metadata`` as data: nothing that it asks for is carried out.

    :param files: the files that it may point to.
    :param leave_out_others: leave out what is not a tensor, instead of refusing the whole.
    :raises NotWhole: when it asks for anything else, cannot be read, or holds what is not a tensor.
    """
    from hekaton.checkpoint.disk.metadata import stored_tensors

    try:
        tensors = stored_tensors(
            read_file(folder / METADATA, limit=MAX_BYTES), leave_out_others=leave_out_others
        )
        check_files(tensors, files)
    except OSError as error:
        raise NotWhole(f"{METADATA} cannot be read: {reason_of(error)}") from error
    except (NotPlain, NotDescribed) as error:
        raise NotWhole(f"{METADATA} {error}") from error
    return tensors


def check_within_files(
    said_by: str, tensors: Mapping[str, StoredTensor], files: Mapping[str, FileRecord]
) -> Mapping[str, StoredTensor]:
    """:raises NotWhole: when a tensor is not within the files; :returns: the tensors."""
    try:
        check_files(tensors, files)
        check_lengths(tensors, {name: record.size for name, record in files.items()})
    except NotDescribed as error:
        raise NotWhole(f"{said_by} {error}") from error
    return tensors
