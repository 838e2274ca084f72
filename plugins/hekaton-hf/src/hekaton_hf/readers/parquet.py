"""The text column of parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hekaton_hf.decoding import BLOCK, UnreadableError, decode
from hekaton_hf.readers import Rows

_ROWS = 256
"""Rows that are decoded at once."""


def read_parquet(path: Path, rows: Rows, column: str) -> None:
    """One column of a parquet file, whatever Arrow keeps text in.

    :raises UnreadableError: when the column is not text.
    """
    rows.recoded()
    with pq.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:
        names = file.schema_arrow.names
        if file.metadata.num_rows:
            rows.keys(names, column in names)
        if column not in names:
            return
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
