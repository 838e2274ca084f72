"""Pickle streams for the tests of what reads them, and the state of the process that must not change."""

from __future__ import annotations

import enum
import importlib
import io
import os
import pickle
import random
import resource
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from hekaton.checkpoint.disk import items, metadata

STOP = b"."
PROTOCOL = b"\x80\x04"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(path: str) -> bytes:
    """The global of a dotted path."""
    module, _, attribute = path.rpartition(".")
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def table(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


class AsPython3110(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.0 to 3.11.3 do: by ``getattr``."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def written_by_torch(folder: Path) -> bytes:
    """The ``.metadata`` of a checkpoint of tensors and other things."""
    state = {
        "layers.0.weight": torch.ones(3, 4),
        "scale": torch.ones((), dtype=torch.bfloat16),
        "nested": {"buffer": torch.ones(2, dtype=torch.float8_e4m3fn), "list": [torch.ones(1)]},
        "notes": "text",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return (folder / ".metadata").read_bytes()


def spellings(stream: bytes) -> list[bytes]:
    """The same metadata as other protocols and releases of Python write it."""
    metadata = pickle.loads(stream)
    again = [pickle.dumps(metadata, protocol) for protocol in (2, 3, 4, 5)]
    old = io.BytesIO()
    AsPython3110(old).dump(metadata)
    metadata.storage_meta.checkpoint_id = PurePosixPath("x")
    moved = pickle.dumps(metadata).replace(b"PurePosixPath", b"PosixPath")
    moved = moved.replace(b"\x8c\x0dPosixPath", b"\x8c\x09PosixPath")
    until_3_12, of_3_13 = b"\x8c\x07pathlib", b"\x8c\x0epathlib._local"
    moved = moved.replace(of_3_13, until_3_12)
    return [stream, *again, old.getvalue(), *map(_reframed, (moved, moved.replace(until_3_12, of_3_13)))]


def _reframed(stream: bytes) -> bytes:
    """With the length of its one frame as it is now."""
    return stream[:3] + struct.pack("<Q", len(stream) - 11) + stream[11:]


def mutations(
    honest: Sequence[bytes], words: Sequence[bytes], chance: random.Random, *, count: int
) -> Iterator[bytes]:
    """Damaged and recombined streams.

    :param honest: what to begin with.
    :param words: what to put into them.
    """
    for _ in range(count):
        stream = bytearray(chance.choice(honest))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(stream) + 1)
            end = min(len(stream), at + chance.choice((0, 1, 1, 2, 8, 40)))
            kind = chance.randrange(6)
            if kind == 0:
                stream[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
            elif kind == 1:
                stream[at:end] = chance.choice(words)
            elif kind == 2:
                stream[at:at] = chance.choice(words)
            elif kind == 3:
                other = chance.choice(honest)
                start = chance.randrange(len(other))
                stream[at:end] = other[start : start + chance.choice((1, 4, 30, 200))]
            elif kind == 4:
                del stream[at:end]
            else:
                one, two = chance.choice(words), chance.choice(words)
                stream = bytearray(bytes(stream).replace(one, two, 1))
        yield bytes(stream)


def names() -> list[str]:
    """Every name that a stream may contain."""
    found: set[str] = set()
    for words in (metadata.vocabulary(), items._VOCABULARY):
        found |= {*words.functions, *words.classes, *words.constants}
    return sorted(found)


def admitted() -> dict[str, Any]:
    """What every admitted name would stand for, and the modules of these names."""
    things: dict[str, Any] = {}
    for path in names():
        module, _, attribute = path.rpartition(".")
        try:
            things[module] = importlib.import_module(module)
        except ModuleNotFoundError:  # pathlib._local before Python 3.13
            continue
        if hasattr(things[module], attribute):
            things[path] = getattr(things[module], attribute)
    return things


def attributes() -> dict[str, Any]:
    """Every attribute of the admitted things and their modules, and what the mutable ones hold."""
    seen: dict[str, Any] = {}
    for path, thing in admitted().items():
        for attribute, value in vars(thing).items() if hasattr(thing, "__dict__") else ():
            contents = sorted(map(repr, value)) if isinstance(value, dict) and len(value) < 1000 else None
            seen[f"{path}:{attribute}"] = (id(value), contents)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def world(folder: Path) -> list[Any]:
    """What reading must leave as it is: classes, modules, environment, files, the current folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    # A zip file has names in its own encoding, which Python imports when it is first met.
    modules = sorted(name for name in sys.modules if not name.startswith("encodings."))
    return [attributes(), modules, environment, files(folder), os.getcwd()]


def peak() -> int:
    """The most memory that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
