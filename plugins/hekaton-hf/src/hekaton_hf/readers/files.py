"""A file of any format, compressed or not, read once from its beginning to its end."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import xxhash

from hekaton.errors import DataError
from hekaton_hf.decoding import BLOCK, DocumentColumns, TextBlocks, UnreadableError
from hekaton_hf.files import COMPRESSED, format_of, shown
from hekaton_hf.readers import Rows, whole_lines
from hekaton_hf.readers.json_rows import read_json, read_json_lines
from hekaton_hf.readers.parquet import read_parquet
from hekaton_hf.readers.txt import check_length, read_txt

_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


class HashingFile:
    """A file whose content is hashed as it is read, from the beginning to the end."""

    closed = False
    """For decompressors: closing it is not theirs."""

    def __init__(self, path: Path, watch: Callable[[int], None]) -> None:
        """:param watch: is called with the number of bytes of each reading."""
        self._file = path.open("rb", buffering=0)
        self._watch = watch
        self._digest = xxhash.xxh3_128()

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = BLOCK) -> bytes:
        """Up to ``size`` bytes, none only at the end."""
        content = self._file.read(BLOCK if size < 0 else size) or b""
        self._digest.update(content)
        self._watch(len(content))
        return content

    def close(self) -> None:
        """Nothing; see ``closed``."""

    def finish(self) -> str:
        """Read what no reader asked for. Returns the hash of all."""
        while self.read():
            pass
        return self._digest.hexdigest()


def read_file(
    file: HashingFile, path: Path, rows: Rows, *, reader: DocumentColumns, txt_documents: str
) -> None:
    """Go through a file, whatever its format.

    :param reader: of rows that have columns; a ``.txt`` file has none.
    :raises DataError: when it cannot be read to its end.
    """
    kind = format_of(path)
    try:
        if kind == "parquet":
            file.finish()
            read_parquet(path, rows, reader)
            return
        decompressed = decompressed_file(file, path)
        if path.suffix.lower() in COMPRESSED:
            rows.recoded()
        blocks = TextBlocks(iter(lambda: decompressed.read(BLOCK), b""))
        if blocks.is_recoded:
            rows.recoded()
        if kind == "txt":
            if txt_documents == "file" and path.suffix.lower() not in COMPRESSED:
                check_length(os.fstat(file.fileno()).st_size, txt_documents)
            read_txt(blocks, rows, documents=txt_documents)
        elif kind == "jsonl":
            read_json_lines(whole_lines(iter(blocks)), blocks.skipped, rows, reader)
        else:
            read_json(iter(blocks), blocks.skipped, rows, reader)
    except UnreadableError as e:
        raise DataError(f"cannot read '{shown(path)}': {e}", hint=e.hint) from e
    except _UNREADABLE as e:
        said = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise DataError(f"cannot read '{shown(path)}': {said}") from e


class _NotEmpty:
    """A compressed file. One without a byte is cut short; some decompressors take it for no content."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self._begun = file, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = BLOCK) -> bytes:
        """:raises EOFError: as ``bz2`` and ``lzma`` do."""
        content: bytes = self._file.read(size)
        if not (content or self._begun):
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        self._begun = True
        return content

    def close(self) -> None:
        """Nothing: it is closed where it was opened."""


def decompressed_file(file: HashingFile, path: Path) -> IO[bytes]:
    """The content of a file, decompressed as its name says."""
    stream = cast("IO[bytes]", file)
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=_NotEmpty(stream)))
        case ".bz2":
            return bz2.BZ2File(stream)
        case ".xz":
            return lzma.LZMAFile(stream)
        case ".zst":
            return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(_NotEmpty(stream), "r"), "zstd"))
        case _:
            return stream
