"""No pickle is carried out: streams of admitted names, bombs, and 20,000 mutations leave the world as it was."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import runpy
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hekaton.checkpoint.disk.items import values_in
from hekaton.checkpoint.disk.metadata import stored_tensors, vocabulary
from hekaton.checkpoint.disk.pickled import Instance, NotPlain, read_pickle
from hekaton.checkpoint.disk.stored import NotDescribed, StoredTensor

streams: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("streams.py"))))
PROTOCOL, STOP = streams.PROTOCOL, streams.STOP
name, table, text = streams.name, streams.table, streams.text
names, peak = streams.names, streams.peak

DCP = "torch.distributed.checkpoint"
PATH = "pathlib.PosixPath"
INDEX = f"{DCP}.metadata.MetadataIndex"
SECONDS = 4.0
"""Of a processor that others share, for one stream; honest ones take a thousandth of that."""
MEMORY = 300 << 20
WRITTEN = Path(__file__).with_name("written_by")


def read(stream: bytes) -> dict[str, StoredTensor] | None:
    """Read metadata within the bounds of time; ``None`` where it is refused."""
    began = time.thread_time()
    try:
        return stored_tensors(stream, leave_out_others=True)
    except (NotPlain, NotDescribed) as refused:
        said = str(refused)
    finally:
        assert time.thread_time() - began < SECONDS
    assert 0 < len(said) < 1000
    return None


def attacks() -> dict[str, bytes]:
    """Streams of admitted names alone that would change something if they were carried out."""
    made: dict[str, bytes] = {}
    attribute = table((text("__fspath__"), name(PATH)))
    values = {"text": text("x"), "table": attribute, "tuple": text("x") + b"\x85", "nothing": b")"}
    for path in names():
        thing = name(path)
        made[f"state of {path}"] = thing + attribute + b"b"
        made[f"slots of {path}"] = thing + b"N" + attribute + b"\x86b"
        made[f"item of {path}"] = thing + text("x") + text("y") + b"s"
        made[f"items of {path}"] = thing + b"(" + text("x") + text("y") + b"u"
        made[f"append to {path}"] = thing + text("x") + b"a"
        made[f"appends to {path}"] = thing + b"(" + text("x") + b"e"
        made[f"add to {path}"] = thing + b"(" + text("x") + b"\x90"
        made[f"new {path} with keywords"] = thing + b")" + attribute + b"\x92"
        made[f"new {path} with arguments"] = thing + text("x") + b"\x85\x81"
        module, _, last = path.rpartition(".")
        made[f"instance of {path}"] = b"(" + f"i{module}\n{last}\n".encode()
        made[f"object of {path}"] = b"(" + thing + b"o"
        made[f"attribute of {path}"] = name("builtins.getattr") + thing + text("__dict__") + b"\x86R"
        made[f"attribute of {path}, dotted"] = text(module) + text(f"{last}.__dict__") + pickle.STACK_GLOBAL
        for kind, value in values.items():
            made[f"{path} of {kind}"] = thing + value + b"\x85R"
            made[f"{path} called with a bare {kind}"] = thing + value + b"R"
            made[f"state of what {path} of {kind} returns"] = thing + value + b"\x85R" + attribute + b"b"
    index = name(INDEX) + b")\x81"
    made |= {
        "state twice": index
        + table((text("fqn"), text("x")))
        + b"0"
        + index
        + attribute
        + b"b"
        + attribute
        + b"b",
        "slots of an instance": index + b"N" + attribute + b"\x86b" + attribute + b"b",
        "a class as the state": index + name(PATH) + b"b",
        "an extension": b"\x82\x01",
        "an extension of two bytes": b"\x83\x01\x01",
        "an extension of four": b"\x84\x01\x00\x00\x01",
        "a persistent id": b"Px\n",
        "a persistent value": text("x") + b"Q",
        "a buffer": b"\x97",
        "bytes": b"C\x01x",
        "bytearray": b"\x96" + struct.pack("<Q", 1) + b"x",
    }
    return {what: PROTOCOL + stream + STOP for what, stream in made.items()}


def test_admitted_names_cannot_execute_anything(unchanged: None) -> None:
    """A few of these are plain data, as ``Size((1,))`` is: no more than a record of what was asked for."""
    refused = 0
    streams_of = attacks()
    for what, stream in streams_of.items():
        try:
            found = read_pickle(stream, vocabulary())
            assert type(found).__module__ in {"hekaton.checkpoint.disk.pickled", "builtins"}, what
        except NotPlain:
            refused += 1
        assert read(stream) is None, what
    assert refused > 0.9 * len(streams_of)


PATCHES = """
import os, pickle, sys
from pathlib import Path
pickle.loads(bytes.fromhex(sys.argv[1]))
print(os.fspath(Path("/harmless")))
"""


def test_the_same_streams_patch_a_class_where_pickle_carries_them_out() -> None:
    """So that the test above tests something."""
    state = table((text("__fspath__"), name("torch.serialization._get_layout")))
    stream = PROTOCOL + name(PATH) + b"N" + state + b"\x86b" + STOP
    assert read(stream) is None
    done = subprocess.run(
        [sys.executable, "-c", PATCHES, stream.hex()], capture_output=True, text=True, timeout=60
    )
    assert "/harmless" not in done.stdout
    assert "_get_layout" in done.stderr or "layout" in done.stderr


def nested(opcode: bytes, *, times: int) -> bytes:
    return b")" + opcode * times


BOMBS: dict[str, Callable[[], bytes]] = {
    "tuples of themselves twice": lambda: b")" + b"\x94h\x00\x86" + b"".join(
        b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + b"\x86" for i in range(1, 100_000)
    ),
    "a deep tuple": lambda: nested(b"\x85", times=300_000),
    "a list in itself": lambda: b"]\x94h\x00a",
    "a table in itself": lambda: b"}\x94" + text("x") + b"h\x00s",
    "an instance in itself": lambda: name(INDEX) + b")\x81\x94}" + text("fqn") + b"h\x00sb",
    "an integer of gigabytes": lambda: b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff" * 1000,
    "an integer of negative length": lambda: b"\x8b" + struct.pack("<i", -1),
    "an integer of a megabyte": lambda: b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20),
    "a frame of exabytes": lambda: b"\x95" + b"\xff" * 8,
    "text of exabytes": lambda: b"\x8d" + b"\xff" * 8,
    "text of gigabytes": lambda: b"X" + b"\xff" * 4 + b"x",
    "a memo with a hole": lambda: b"Nr" + b"\xff" * 4 + b"j" + b"\xff" * 4,
    "many memos": lambda: b"N" + b"\x94" * 1_000_000,
    "many marks": lambda: b"(" * 1_000_000,
    "many values": lambda: b"N" * 1_000_000,
    "many lists": lambda: b"]" + b"]a" * 1_000_000,
    "many tables": lambda: b"]" + b"(" + b"}" * 9_000 + b"e",
    "pairs for a hash that takes forever": lambda: b"}" + b")" + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)
    ) + b"Ns",
    "a name of megabytes": lambda: text("torch") + text("x" * (5 << 20)) + b"\x93",
    "a line of megabytes": lambda: b"c" + b"x" * (5 << 20),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickle_bombs_are_refused_immediately(bomb: str, unchanged: None) -> None:
    before = peak()
    assert read(PROTOCOL + BOMBS[bomb]() + STOP) is None
    assert peak() - before < MEMORY


@pytest.mark.parametrize("place", ["state_dict_metadata", "planner_data", "storage_data", "version", "size"])
@pytest.mark.parametrize(
    "bomb", ["tuples of themselves twice", "a deep tuple", "pairs for a hash that takes forever"]
)
def test_pickle_bombs_inside_metadata_are_never_expanded(bomb: str, place: str, unchanged: None) -> None:
    fields = {key: table() for key in ("state_dict_metadata", "storage_data", "planner_data")}
    payload = BOMBS[bomb]()
    if place == "size":
        tensor = table((text("size"), payload), (text("properties"), b"N"), (text("chunks"), b"]"))
        fields["state_dict_metadata"] = table(
            (text("x"), name(f"{DCP}.metadata.TensorStorageMetadata") + b")\x81" + tensor + b"b")
        )
    else:
        fields[place] = payload
    state = table(*((text(key), value) for key, value in fields.items()))
    found = read(PROTOCOL + name(f"{DCP}.metadata.Metadata") + b")\x81" + state + b"b" + STOP)
    assert not found


def test_every_encoding_of_metadata_is_read_alike(tmp_path: Path) -> None:
    stream = streams.written_by_torch(tmp_path / "step")
    expected = pickle.loads(stream)
    spellings = streams.spellings(stream)
    assert len(set(spellings)) == len(spellings) - 1, "all differ; protocol 4 is the default"
    for spelling in spellings:
        found = read(spelling)
        assert found is not None
        assert found.keys() == expected.state_dict_metadata.keys() - {"notes"}
        for key, tensor in found.items():
            theirs = expected.state_dict_metadata[key]
            assert (tensor.dtype, tensor.shape) == (str(theirs.properties.dtype)[6:], tuple(theirs.size))
            (chunk,) = tensor.chunks
            index = pickle.loads(stream).storage_data
            place = next(value for at, value in index.items() if at.fqn == key)
            assert (chunk.file, chunk.start, chunk.length) == (
                place.relative_path,
                place.offset,
                place.length,
            )


@pytest.mark.parametrize("file", sorted(WRITTEN.iterdir()), ids=lambda file: file.stem)
def test_metadata_of_other_versions_is_read(file: Path) -> None:
    """As those versions of torch and Python wrote it: of two tensors and a text, saved by hand."""
    stored = read(file.read_bytes())
    assert stored is not None
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in stored.items()} == {
        "layers.0.weight": ("float32", (3, 4)),
        "scale": ("bfloat16", ()),
    }
    chunks = sorted((chunk.start, chunk.length) for tensor in stored.values() for chunk in tensor.chunks)
    assert all(length > 0 for _, length in chunks)
    assert chunks[0][0] + chunks[0][1] <= chunks[1][0], "one after the other"


def words() -> list[bytes]:
    """What mutations put in: opcodes, names, calls and states of admitted things, numbers at the edges."""
    opcodes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    numbers = [
        b"K\x00",
        b"J" + b"\xff" * 4,
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    ]
    things = [name(path) for path in names()]
    calls = [thing + b")R" for thing in things] + [thing + b")\x81" for thing in things]
    attribute = table((text("__fspath__"), name(PATH)))
    states = [attribute + b"b", b"N" + attribute + b"\x86b", b"}b"]
    # Short texts as honest streams spell them, so that replacing one name by another happens.
    short = [
        b"\x8c" + bytes([len(word)]) + word for path in names() for word in [path.rpartition(".")[2].encode()]
    ]
    return [*opcodes * 4, *numbers * 4, *things, *calls, *states * 20, *short]


@pytest.mark.timeout(300)
def test_mutated_metadata_changes_nothing(tmp_path: Path, unchanged: None) -> None:
    honest = streams.spellings(streams.written_by_torch(tmp_path / "step"))
    before, read_ones = peak(), 0
    for stream in streams.mutations(honest, words(), random.Random(9), count=20_000):
        found = read(stream)
        if found is not None:
            read_ones += 1
            assert all(type(size) is int for tensor in found.values() for size in tensor.shape)
    assert 0 < read_ones < 20_000, "some mutations are harmless, most are not"
    assert peak() - before < MEMORY


def test_mutated_items_change_nothing(tmp_path: Path, unchanged: None) -> None:
    """The files of ``torch.save`` within ``.distcp`` files."""
    honest = []
    for number, tensor in enumerate((torch.ones(3, 4).t(), torch.ones(2, dtype=torch.float8_e5m2))):
        torch.save(tensor, tmp_path / f"{number}")
        honest.append((tmp_path / f"{number}").read_bytes())
    before, read_ones = peak(), 0
    for stream in streams.mutations(honest, words(), random.Random(10), count=2_000):
        try:
            values = values_in(io.BytesIO(stream), 0, len(stream))
        except (NotPlain, NotDescribed):
            continue
        read_ones += 1
        assert 0 <= values.start <= values.start + values.nbytes <= len(stream)
    assert read_ones
    assert peak() - before < MEMORY


def test_instances_are_records(tmp_path: Path) -> None:
    found = read_pickle(streams.written_by_torch(tmp_path / "step"), vocabulary())
    assert isinstance(found, Instance)
    assert found.of == f"{DCP}.metadata.Metadata"
