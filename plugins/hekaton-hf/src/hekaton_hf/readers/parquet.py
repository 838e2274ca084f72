"""The text column of parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hekaton_hf.decoding import BLOCK, DocumentColumns, TextColumn, UnreadableError, decode
from hekaton_hf.readers import Rows, keep_document

_ROWS = 256
"""Rows that are decoded at once."""


def read_parquet(path: Path, rows: Rows, reader: DocumentColumns) -> None:
    """The documents of a parquet file: one column, whatever Arrow keeps text in, or rows of several.

    :raises UnreadableError: when the column is not text.
    """
    rows.recoded()
    with pq.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:
        names = file.schema_arrow.names
        if file.metadata.num_rows:
            rows.keys(names, bool(reader.columns(names)))
        if not reader.columns(names):
            return
        if not isinstance(reader, TextColumn):
            _read_rows(file, rows, reader)
            return
        column = reader.column
        if not _holds_text(file.schema_arrow.field(column).type):
            raise UnreadableError(f"column '{column}' is not text but {file.schema_arrow.field(column).type}")
        number = 0
        for batch in file.iter_batches(_ROWS, columns=[column], use_threads=False):
            for raw in _as_bytes(batch.column(0)):
                number += 1
                text, replaced = decode(raw or b"")
                rows.text(text, 0, 0)
                if replaced:
                    rows.replaced(f"row {number}")


def _read_rows(file: pq.ParquetFile, rows: Rows, reader: DocumentColumns) -> None:
    columns = reader.columns(file.schema_arrow.names)
    number = 0
    for batch in file.iter_batches(_ROWS, columns=columns, use_threads=False):
        for row in batch.to_pylist():
            number += 1
            keep_document(row, reader, rows, where=f"row {number}")


def _holds_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (
        pa.null(),
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view()),
    )


def _as_bytes(values: pa.Array) -> list[bytes | None]:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    found: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
    return found
