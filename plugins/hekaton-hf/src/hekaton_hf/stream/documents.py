"""Dataset ``stream``: each document is a part of a file, of which the texts are read as they are needed."""

from __future__ import annotations

import logging
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hekaton.data import Encoded, TextTokenizer
from hekaton.data.encoders import TextEncoder
from hekaton.data.identity import fingerprint
from hekaton.data.order import document_at, mixed_number
from hekaton.errors import DataError
from hekaton_hf.decoding import BLOCK, UnreadableError, parse_object, text_in
from hekaton_hf.files import format_of
from hekaton_hf.readers import whole_lines
from hekaton_hf.readers.files import decompressed_file
from hekaton_hf.sections import StreamDatasetSection
from hekaton_hf.stream.remote import (
    Patience,
    PatientFile,
    StreamFile,
    find_named,
    find_remote,
    urls_in,
)

log = logging.getLogger("hekaton")

GROUP = 1 << 16
"""Characters of texts that are encoded together."""
_ROWS = 256
_skipped: set[tuple[str, str]] = set()
"""Rows that were named."""
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


@dataclass(frozen=True)
class StreamPart:
    """Every ``parts``-th text of a file, from ``number`` on.

    :param seed: of the order of texts within the buffer.
    """

    file: StreamFile
    number: int
    parts: int
    seed: int
    section: StreamDatasetSection

    def texts(self) -> Iterator[str]:
        """The texts, in the order that the buffer gives them.

        :raises DataError: naming the file and row of one that cannot be read.
        """
        mine = (text for number, text in enumerate(self._all()) if number % self.parts == self.number)
        return buffered(mine, self.section.shuffle_buffer, self.seed)

    def _all(self) -> Iterator[str]:
        url, bad = self.file.url, 0
        with PatientFile(self.file, _patience(self.section)) as stream:
            try:
                for where, read in self._rows(stream):
                    try:
                        text = read()
                    except ValueError as e:
                        bad += 1
                        if bad > self.section.max_bad_rows:
                            raise DataError(
                                f"'{url}', {where}: {e}",
                                hint="repair the file, or set stream_dataset.max_bad_rows higher",
                            ) from e
                        if (url, where) not in _skipped:  # parts and epochs meet it again
                            _skipped.add((url, where))
                            log.warning("skipping '%s', %s: %s", url, where, e)
                        continue
                    yield text
                stream.check_at_end()
            except UnreadableError as e:
                raise DataError(f"cannot read '{url}': {e}", hint=e.hint) from e
            except _UNREADABLE as e:
                said = (str(e).strip().splitlines() or [type(e).__name__])[0]
                raise DataError(f"cannot read '{url}': {said}") from e

    def _rows(self, stream: PatientFile) -> Iterator[tuple[str, Any]]:
        column = self.section.text_column
        if format_of(self.file.path) == "parquet":  # type: ignore[arg-type]
            with pq.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=False) as file:
                if column not in file.schema_arrow.names:
                    raise DataError(
                        f"no column '{column}' in '{self.file.url}'",
                        hint=f"stream_dataset.text_column is one of: {', '.join(file.schema_arrow.names)}",
                    )
                number = 0
                for batch in file.iter_batches(_ROWS, columns=[column], use_threads=False):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield f"row {number:,}", lambda value=value: text_in({column: value}, column)[0]
            return
        content = decompressed_file(cast("Any", stream), self.file.path)  # type: ignore[arg-type]
        number = 0
        for block in whole_lines(iter(lambda: content.read(BLOCK), b"")):
            for line in block.split(b"\n"):
                number += 1
                if line and not line.isspace():
                    yield f"line {number:,}", lambda line=line: _text(line, column)
            number -= 1


def _text(line: bytes, column: str) -> str:
    row = parse_object(line)
    if column not in row:
        raise ValueError(f"there is no '{column}', but {', '.join(map(repr, list(row)[:10]))}")
    return text_in(row, column)[0]


def buffered(texts: Iterator[str], size: int, seed: int) -> Iterator[str]:
    """Texts in another order: each ``size`` of them are shuffled among each other."""
    window: list[str] = []
    windows = 0
    for text in texts:
        window.append(text)
        if len(window) == size:
            yield from _shuffled(window, seed + windows)
            window, windows = [], windows + 1
    yield from _shuffled(window, seed + windows)


def seed_of(part: int, key: int) -> int:
    """The seed of the order of texts within the buffer of a part."""
    return mixed_number((key + part) & 2**64 - 1)


def check_parts(rows: int, parts: int, *, hint: str) -> None:
    """:raises DataError: where a row of the global batch would have to read what another one does."""
    if parts < rows:
        raise DataError(
            f"{rows:,} rows of the global batch read parts of their own, and the stream has {parts:,}",
            hint=hint,
        )


def _shuffled(window: Sequence[str], seed: int) -> Iterator[str]:
    if not window:
        return
    for place in document_at(np.arange(len(window)), documents=len(window), seed=seed).tolist():
        yield window[place]


class Streams:
    """Parts of files behind URLs. An order shuffles the parts; a buffer the texts of each."""

    def __init__(self, files: Sequence[StreamFile], section: StreamDatasetSection) -> None:
        self._files, self._section = files, section
        self.fingerprint = fingerprint(
            "stream 2", *(f"{file.url}, {file.state}" for file in files), str(section.parts_per_file),
            str(section.shuffle_buffer), section.text_column,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._files) * self._section.parts_per_file

    def check_rows(self, rows: int) -> None:
        """:raises DataError: where a row would have to read what another one does."""
        least = -(-rows // len(self._files))
        hint = f"set stream_dataset.parts_per_file = {least}, or name more files"
        check_parts(rows, len(self), hint=hint)

    def fetch(self, indices: Sequence[int]) -> list[StreamPart]:
        return self.fetch_shuffled(indices, [0] * len(indices))

    def fetch_shuffled(self, indices: Sequence[int], keys: Sequence[int]) -> list[StreamPart]:
        parts = self._section.parts_per_file
        return [
            StreamPart(
                self._files[index // parts], index % parts, parts, seed_of(index, key), self._section
            )
            for index, key in zip(indices, keys, strict=True)
        ]  # fmt: skip

    def files(self) -> dict[str, str]:
        """What the file systems say of each file."""
        return {file.url: file.state for file in self._files}


@dataclass(frozen=True)
class Group:
    """Texts of a part that are encoded together."""

    texts: Sequence[str]
    is_first: bool
    is_last: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))


class StreamEncoder:
    """The ids of the texts of a part, one after the other, each with its marks."""

    fingerprint = "stream"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._text = TextEncoder(tokenizer)

    def cut(self, document: StreamPart) -> Iterator[Group]:
        is_first, texts, size = True, [], 0
        for text in document.texts():
            if size >= GROUP:
                yield Group(texts, is_first, False)
                is_first, texts, size = False, [], 0
            texts.append(text)
            size += len(text)
        yield Group(texts, is_first, True)

    def encode(self, parts: Sequence[Group]) -> list[Encoded]:
        pieces = [[list(self._text.cut(text)) for text in part.texts] for part in parts]
        flat = [piece for of_part in pieces for of_text in of_part for piece in of_text]
        encoded = iter(self._text.encode(flat))
        return [
            _joined([np.concatenate([next(encoded).ids for _ in of_text]) for of_text in of_part])
            for of_part in pieces
        ]


def _joined(texts: Sequence[Any]) -> Encoded:
    texts = [ids for ids in texts if len(ids)]
    if not texts:
        return Encoded(np.zeros(0, np.int32))
    ends = np.cumsum([len(ids) for ids in texts])
    return Encoded(np.concatenate(texts), breaks=np.concatenate([[0], ends[:-1]]))


def _patience(section: StreamDatasetSection) -> Patience:
    return Patience(section.attempts, section.stalled_seconds)


def build(section: StreamDatasetSection, path: str | None) -> Streams:
    """The files that URLs mean.

    :raises DataError: when there are none, or they cannot be reached.
    """
    files = find_remote(path or "", _patience(section))
    streams = Streams(files, section)
    log.info("stream: %s files in %s parts", f"{len(files):,}", f"{len(streams):,}")
    return streams


def check(section: StreamDatasetSection, path: str | None, *, here: bool = True) -> Streams | None:
    """What :func:`build` would raise without a network. What is behind it is asked for when a run starts.

    :returns: the files, where they are known.
    """
    urls_in(path or "")
    files = find_named(path or "") if here else None
    return None if files is None else Streams(files, section)


def build_encoder(section: Any, tokenizer: TextTokenizer) -> StreamEncoder:
    return StreamEncoder(tokenizer)
