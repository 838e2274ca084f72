"""Dataset ``tokens``: documents that are token ids already, mapped from files."""

from __future__ import annotations

import logging
import operator
import os
import stat
import struct
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hekaton.corpus.layout import MANIFEST, CorpusManifest, check_sizes, ends_file, ids_file
from hekaton.data import Integers
from hekaton.data.contents import KnownFile, known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton.urls import is_url

log = logging.getLogger("hekaton")

_SHOWN = 5
RAW_DOCUMENT = 2**16
"""Ids of a file without an index that count as one document."""
_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""The codes of Megatron-LM's ``DType`` (megatron/core/datasets/indexed_dataset.py) that are integers."""


@dataclass(frozen=True)
class MappedIds:
    """Documents of one file of ids.

    :param ends: file of where documents end, in ids, and where in it that begins; ``None`` for documents of
        ``RAW_DOCUMENT`` ids.
    :param starts_at: byte of the first id.
    """

    file: Path
    dtype: str
    tokens: int
    documents: int
    starts_at: int = 0
    ends: Path | None = None

    @cached_property
    def ids(self) -> npt.NDArray[Any]:
        return _mapped(self.file, self.dtype, self.starts_at, self.tokens)

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        assert self.ends is not None
        return _mapped(self.ends, "<i8", 0, self.documents)

    def located(self, indices: Integers) -> tuple[Integers, Integers]:
        """Where documents begin and end, in ids.

        :raises DataError: when that cannot be.
        """
        starts, ends = self.places(indices)
        wrong = np.flatnonzero((starts < 0) | (starts > ends) | (ends > self.tokens))
        if len(wrong):
            index, start, end = (int(values[wrong[0]]) for values in (indices, starts, ends))
            raise DataError(
                f"document {index:,} of '{self.file}' lies from id {start:,} to {end:,} of {self.tokens:,}",
                hint="its index is damaged: hekaton data verify",
            )
        return starts, ends

    def places(self, indices: Integers) -> tuple[Integers, Integers]:
        """Where documents begin and end as the index says it."""
        if self.ends is None:
            starts = indices * RAW_DOCUMENT
            return starts, np.minimum(starts + RAW_DOCUMENT, self.tokens)
        return np.where(indices > 0, self._ends[indices - 1], 0), self._ends[indices]


def _mapped(file: Path, dtype: str, start: int, count: int) -> npt.NDArray[Any]:
    """A view of a file, as a plain array: indexing an ``np.memmap`` costs several times that."""
    return np.asarray(np.memmap(file, np.dtype(dtype), "r", start, (count,)))


@dataclass(frozen=True)
class MegatronIds(MappedIds):
    """A ``.bin`` with the ``.idx`` of Megatron-LM beside it; each of its sequences is a document."""

    pointers_at: int = 0

    @cached_property
    def _pointers(self) -> npt.NDArray[np.int64]:
        assert self.ends is not None
        return _mapped(self.ends, "<i8", self.pointers_at, self.documents)

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int32]:
        assert self.ends is not None
        return _mapped(self.ends, "<i4", self.pointers_at - 4 * self.documents, self.documents)

    def places(self, indices: Integers) -> tuple[Integers, Integers]:
        pointers, itemsize = self._pointers[indices], np.dtype(self.dtype).itemsize
        starts = pointers // itemsize
        starts[pointers % itemsize != 0] = -1  # a document cannot begin within an id
        return starts, starts + self._lengths[indices]


class TokenFiles:
    """The documents of files of ids, one file after the other."""

    def __init__(
        self,
        files: Sequence[MappedIds],
        *,
        known: Mapping[Path, KnownFile],
        identity: str,
        contents: dict[str, str],
        made_with: str | None = None,
        vocab_size: int = 2**32,
    ) -> None:
        """:param known: the files that are read, and what they were when the run started."""
        self._mapped = files
        self._known = dict(known)
        self._ends = np.cumsum([file.documents for file in files])
        dtypes = {file.dtype for file in files}
        self.dtype: np.dtype[Any] = np.dtype(dtypes.pop()) if len(dtypes) == 1 else np.dtype(np.int64)
        self._contents = contents
        self.fingerprint = identity
        self.made_with = made_with
        """Fingerprint of the tokenizer that made the ids, where it is known."""
        self.vocab_size = vocab_size
        """Every id is below it."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fetch(self, indices: Sequence[int]) -> list[npt.NDArray[Any]]:
        located = self.locate(np.asarray(indices, np.int64)).tolist()
        for number in {number for number, *_ in located}:
            self._check(number)
        return [self._mapped[number].ids[start:end] for number, start, end in located]

    def place_of(self, index: int, token: int) -> str:
        ((number, start, _),) = self.locate(np.array([index])).tolist()
        return f"'{self._mapped[number].file}', token {start + token:,} (document {index:,})"

    def _check(self, number: int, *, index: bool = False) -> None:
        """Notice a file that was written to or replaced, before something is read out of it.

        :param index: that of the file, and not the file.
        :raises DataError: when it has another content now.
        """
        mapped = self._mapped[number]
        path = mapped.ends if index else mapped.file
        if path is not None:
            self._known[path] = self._known[path].unchanged()

    def locate(self, indices: Integers) -> Integers:
        located = np.empty((len(indices), 3), np.int64)
        located[:, 0] = numbers = self._ends.searchsorted(indices, side="right")
        only = len(self._mapped) == 1
        for number in [0] if only else np.unique(numbers).tolist():
            self._check(number, index=True)
            mapped = self._mapped[number]
            within = slice(None) if only else numbers == number
            in_file = indices[within] - (int(self._ends[number]) - mapped.documents)
            located[within, 1], located[within, 2] = mapped.located(in_file)
        return located

    def views(self, located: Integers, dtype: np.dtype[Any]) -> Iterator[memoryview]:
        numbers, starts, ends = located.T.tolist()
        for number in set(numbers):
            self._check(number)
        ids = {number: self._mapped[number].ids for number in set(numbers)}
        if any(one.dtype != dtype for one in ids.values()):
            places = zip(numbers, starts, ends, strict=True)
            return (memoryview(ids[number][start:end].astype(dtype)) for number, start, end in places)
        views = {number: memoryview(one) for number, one in ids.items()}
        if len(views) == 1:
            return map(views[numbers[0]].__getitem__, map(slice, starts, ends))
        parts = map(slice, starts, ends)
        return map(operator.getitem, map(views.__getitem__, numbers), parts)  # type: ignore[arg-type]

    def files(self) -> dict[str, str]:
        """Size, and checksum or digest of a sample, of each file."""
        return self._contents


def build(section: Any, path: str | None) -> TokenFiles:
    """The corpus in a folder, the ``.bin``/``.idx`` files of Megatron-LM, or ``.npy`` and raw files of ids.

    :raises DataError: when there is none, or it is damaged.
    """
    place = _place(path)
    if _has_manifest(place):
        documents = _corpus(place)
        if "dtype" in getattr(section, "model_fields_set", ()):
            log.warning("tokens_dataset.dtype has no effect: %s says of which type its ids are", MANIFEST)
    else:
        documents = _hashed(_foreign_files(place, section.dtype))
    log.info("%s: %d files of ids, %s documents", place, len(documents.files()), f"{len(documents):,}")
    return documents


def check(section: Any, path: str | None, *, here: bool = True) -> CorpusManifest | None:
    """What can be said of the files without reading them through.

    :raises DataError: as :func:`build`.
    """
    place = _place(path)
    if not here:
        return None
    if not _has_manifest(place):
        _foreign_files(place, section.dtype)
        return None
    manifest = CorpusManifest.read(place)
    check_sizes(place, manifest)
    return manifest


def _place(path: str | None) -> Path:
    if path is None:
        raise DataError("dataset 'tokens' needs files to read", hint="set dataset_path, a folder or a file")
    if is_url(path):
        raise DataError(f"dataset 'tokens' maps files into memory, and '{path}' is a URL", hint="copy it")
    return Path(path)


def _has_manifest(place: Path) -> bool:
    """:raises DataError: for what cannot be a path, or not be looked into."""
    try:
        return stat.S_ISREG(os.stat(place / MANIFEST).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as e:
        said = e.strerror if isinstance(e, OSError) else e
        raise DataError(f"cannot read {str(place)!r:.200}: {said}") from e


def _foreign_files(place: Path, dtype: str) -> list[MappedIds]:
    """The files that other programs made."""
    names = [place.with_suffix(".bin") if place.suffix == ".idx" else place]
    if place.is_dir():
        names = _names_in(place)
    for file in names:
        if file.with_suffix(".ends").exists():
            raise DataError(
                f"'{file}' is a shard of a corpus whose {MANIFEST} is not there",
                hint="give the folder of the whole corpus; hekaton preprocess writes that file last",
            )
    return [_foreign(file, dtype) for file in names]


def _hashed(files: Sequence[MappedIds]) -> TokenFiles:
    known = {file: known_file(file) for one in files for file in (one.file, one.ends) if file}
    contents = {file.name: f"{its.state.size:,} bytes, {its.content[:16]}" for file, its in known.items()}
    identity = fingerprint(*(its.content for its in known.values()), *(one.dtype for one in files))
    return TokenFiles(files, known=known, identity=identity, contents=contents)


def _names_in(folder: Path) -> list[Path]:
    """The files of ids in a folder. Hidden ones are other programs' own."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [entry for entry in entries if entry.suffix in (".bin", ".npy")]
    if not names:
        raise DataError(
            f"no tokenised files in '{folder}': neither {MANIFEST} nor .bin or .npy files",
            hint="hekaton preprocess makes a corpus",
        )
    others = [entry.name for entry in entries if entry not in names and entry.suffix != ".idx"]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        log.warning("%s: not read as ids: %s%s", folder, ", ".join(others[:_SHOWN]), more)
    return names


def _corpus(folder: Path) -> TokenFiles:
    """:raises DataError: for a file that is not what the manifest says."""
    manifest = CorpusManifest.read(folder)
    check_sizes(folder, manifest)
    files = [
        MappedIds(
            ids_file(folder, shard),
            f"<u{np.dtype(manifest.dtype).itemsize}",
            shard.tokens,
            shard.documents,
            ends=ends_file(folder, shard),
        )
        for shard in manifest.shards
        if shard.tokens
    ]
    checksums = [
        checksum for shard in manifest.shards for checksum in (shard.ids_checksum, shard.ends_checksum)
    ]
    known = {}
    for shard in manifest.shards if files else ():
        for file, checksum in (
            (ids_file(folder, shard), shard.ids_checksum),
            (ends_file(folder, shard), shard.ends_checksum),
        ):
            known[file] = known_file(file)
            if known[file].content != checksum:
                raise DataError(
                    f"'{file}' has another checksum than when the corpus was made",
                    hint="copy it again, or make the corpus anew: hekaton preprocess",
                )
    return TokenFiles(
        files,
        known=known,
        identity=fingerprint(*checksums),
        contents={f"{shard.name}.bin": f"{shard.tokens:,} ids, {shard.ids_checksum[:16]}"
                  for shard in manifest.shards},
        made_with=manifest.tokenizer,
        vocab_size=manifest.vocab_size,
    )  # fmt: skip


def _foreign(file: Path, dtype: str) -> MappedIds:
    """A file that another program made."""
    index = file.with_suffix(".idx")
    try:
        found = file.stat()
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):  # opening a FIFO waits for its writer
            raise DataError(f"'{file}' is no regular file")
        if file.suffix == ".npy":
            return _npy(file)
        if index.is_file():
            return _megatron(file, index, size)
    except OSError as e:
        raise DataError(f"cannot read '{e.filename}': {e.strerror}") from e
    itemsize = np.dtype(dtype).itemsize
    if size % itemsize or not size:
        raise DataError(f"'{file}' has {size:,} bytes, which are no {dtype}", hint="set tokens_dataset.dtype")
    tokens = size // itemsize
    return MappedIds(file, f"<u{itemsize}", tokens, -(-tokens // RAW_DOCUMENT))


def _npy(file: Path) -> MappedIds:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.ndim != 1 or array.dtype.kind not in "ui" or array.dtype.byteorder == ">":
            raise ValueError(f"it has {array.dtype} of shape {array.shape}, not integers of one dim")
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as e:
        raise DataError(f"'{file}' is no file of ids: {e}") from e
    tokens = len(array)
    return MappedIds(file, array.dtype.str, tokens, -(-tokens // RAW_DOCUMENT), int(array.offset))


def _megatron(file: Path, index: Path, size: int) -> MegatronIds:
    """Check an index against the published layout: magic, version 1, dtype, counts, lengths, pointers."""
    with index.open("rb") as stream:
        head = stream.read(34)
    if not head.startswith(_MEGATRON) or len(head) < 34:
        raise DataError(f"'{index}' is no index of Megatron-LM")
    version, code, sequences, documents = struct.unpack("<QBQQ", head[9:34])
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise DataError(
            f"'{index}' is of version {version} with type {code}: neither is ids that can be read"
        )
    expected = 34 + sequences * 12 + documents * 8
    if index.stat().st_size != expected:
        raise DataError(f"'{index}' has {index.stat().st_size:,} bytes, and its counts say {expected:,}")
    dtype = np.dtype(_MEGATRON_DTYPES[code]).newbyteorder("<")
    mapped = MegatronIds(
        file, dtype.str, size // dtype.itemsize, sequences, ends=index, pointers_at=34 + 4 * sequences
    )
    last = int(mapped.places(np.array([sequences - 1]))[1][0]) if sequences else 0
    if last * dtype.itemsize != size:
        raise DataError(f"'{file}' has {size:,} bytes, and its index says {last * dtype.itemsize:,}")
    return mapped
