"""The layout of a corpus on disk, and its manifest.

A corpus is a folder of shards: ``NAME.bin`` has the ids of all documents one after the other, little-endian,
uint16 or uint32; ``NAME.ends`` has where each document ends in it, in ids, as int64. ``corpus.json`` is
written last and names every file with its size and checksum, and has a checksum of its own; a folder without
it is no corpus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from hekaton.checkpoint.disk.folders import read_file
from hekaton.errors import DataError

MANIFEST = "corpus.json"
VERSION = 2
ENDS_BYTES = 8
_BLOCK = 1 << 22
_MOST_BYTES = 1 << 28
"""Of a manifest: a million shards."""


@dataclass(frozen=True)
class Shard:
    """One shard as the manifest has it; checksums are XXH3-128 of whole files."""

    name: str
    documents: int
    tokens: int
    ids_checksum: str
    ends_checksum: str


@dataclass(frozen=True)
class CorpusManifest:
    """What a corpus is.

    :param dtype: of the ids.
    :param tokenizer: fingerprint of the tokenizer that made it.
    :param vocab_size: every id is below it.
    """

    dtype: Literal["uint16", "uint32"]
    tokenizer: str
    vocab_size: int
    shards: tuple[Shard, ...]

    @property
    def made_with(self) -> str | None:
        """As :class:`hekaton.data.MadeByTokenizer` has it."""
        return self.tokenizer

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def to_json(self) -> str:
        content = {"version": VERSION, **asdict(self)}
        return json.dumps({**content, "checksum": _checksum_of(content)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> CorpusManifest:
        """:raises DataError: when there is none, or it is not one."""
        file = folder / MANIFEST
        try:
            return cls._of(json.loads(read_file(file, limit=_MOST_BYTES)))
        except OSError as e:
            raise DataError(f"cannot read '{file}': {e.strerror}") from e
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise DataError(
                f"'{file}' is not the manifest of a corpus: {e}", hint="make it anew: hekaton preprocess"
            ) from e

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> CorpusManifest:
        if content["version"] != VERSION:
            raise ValueError(f"it is of version {content['version']}, and this hekaton reads {VERSION}")
        if content["checksum"] != _checksum_of({key: content[key] for key in content if key != "checksum"}):
            raise ValueError("its content does not have its checksum")
        if content["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"ids cannot be {content['dtype']}")
        if type(content["vocab_size"]) is not int or not 0 < content["vocab_size"] <= 2**32:
            raise ValueError(f"vocab_size = {content['vocab_size']!r:.80} is no number of ids")
        if not isinstance(content["tokenizer"], str) or not isinstance(content["shards"], list):
            raise ValueError("tokenizer or shards are not of their types")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        for shard in shards:
            counts = (shard.documents, shard.tokens)
            if not all(type(count) is int and 0 <= count < 2**62 for count in counts):
                raise ValueError(f"shard '{shard.name}' has no counts")
            if not isinstance(shard.ids_checksum, str) or not isinstance(shard.ends_checksum, str):
                raise ValueError(f"shard '{shard.name}' has no checksums")
            if not isinstance(shard.name, str) or Path(shard.name).name != shard.name or not shard.name:
                raise ValueError(f"'{shard.name}' is no name of a shard")
        names = {shard.name for shard in shards}
        if len(names) != len(shards):
            raise ValueError("it names a shard twice")
        return cls(content["dtype"], content["tokenizer"], content["vocab_size"], shards)


def dtype_for(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest type that holds all ids."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def ids_file(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.name}.bin"


def ends_file(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.name}.ends"


def checksum(file: Path) -> str:
    """XXH3-128 of a file."""
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _checksum_of(content: Mapping[str, Any]) -> str:
    """Of what a manifest says, whatever the order of its keys and its white space."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def check_sizes(folder: Path, manifest: CorpusManifest) -> None:
    """:raises DataError: naming a file that is not there, or cut short."""
    itemsize = np.dtype(manifest.dtype).itemsize
    for shard in manifest.shards:
        expected = {
            ids_file(folder, shard): shard.tokens * itemsize,
            ends_file(folder, shard): shard.documents * ENDS_BYTES,
        }
        for file, size in expected.items():
            try:
                found = file.stat().st_size
            except OSError as e:
                raise DataError(f"cannot read '{file}': {e.strerror}") from e
            if found != size:
                raise DataError(
                    f"'{file}' has {found:,} bytes, and {size:,} when the corpus was made",
                    hint="copy it again, or make the corpus anew: hekaton preprocess",
                )


def verify(folder: Path) -> list[str]:
    """What is wrong with a corpus, a line each: every file is read through and compared with its checksum.

    :raises DataError: where there is no manifest.
    """
    manifest = CorpusManifest.read(folder)
    wrong = []
    for shard in manifest.shards:
        try:
            check_sizes(
                folder, CorpusManifest(manifest.dtype, manifest.tokenizer, manifest.vocab_size, (shard,))
            )
        except DataError as e:
            wrong.append(e.message)
            continue
        for file, expected in (
            (ids_file(folder, shard), shard.ids_checksum),
            (ends_file(folder, shard), shard.ends_checksum),
        ):
            if checksum(file) != expected:
                wrong.append(f"'{file}' has another checksum than when the corpus was made")
    return wrong
