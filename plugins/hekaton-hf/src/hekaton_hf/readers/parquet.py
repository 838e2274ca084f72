"""The text column of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        for row in _values(batch):
            number += 1
            if isinstance(row, str):
                rows.bad(f"row {number}", row)
            else:
                keep_document(row, reader, rows, where=f"row {number}")


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows with the values that JSON would have, or what is wrong with one."""
    try:
        values = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:
        if len(batch) > 1:
            for number in range(len(batch)):
                yield from _values(batch.slice(number, 1))
        else:
            yield f"it cannot be read: {error}"
        return
    for row in values:
        yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """A value as JSON would have it: all objects of a column have the same names in parquet, and null is what
    one of them lacks."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return decode(value)[0]
    return value if isinstance(value, str | int | float | None) else str(value)


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
