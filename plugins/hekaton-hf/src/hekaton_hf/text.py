"""Dataset ``text``: local files through ``datasets``, which turns them into memory-mapped Arrow files once.

The Arrow files are kept in the cache of ``datasets`` (environment variable ``HF_DATASETS_CACHE``). Processes
that open the same files at once wait for the first to write them.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hekaton.errors import DataError
from hekaton_hf.files import find_files, reader_of
from hekaton_hf.sections import TextDatasetSection

_SAMPLE_BY = {"file": "document", "line": "line", "paragraph": "paragraph"}


class Texts:
    """Columns of memory-mapped tables, one after the other, as documents. A null is an empty document."""

    def __init__(self, columns: Sequence[pa.ChunkedArray], fingerprint: str) -> None:
        self._columns = columns
        self._ends = np.cumsum([len(column) for column in columns], dtype=np.int64)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fetch(self, indices: Sequence[int]) -> list[str]:
        texts = []
        for index, part in zip(indices, np.searchsorted(self._ends, indices, side="right"), strict=True):
            column = self._columns[part]
            texts.append(column[int(index) - int(self._ends[part]) + len(column)].as_py() or "")
        return texts


def build(section: TextDatasetSection, path: str | None) -> Texts:
    """The documents of the files that ``path`` means; see :func:`hekaton_hf.files.find_files`.

    :raises DataError: when there are none, or a file cannot be read or has not the column.
    """
    if not path:
        raise DataError(
            "dataset 'text' needs files to read",
            hint='set dataset_path, for example dataset_path = "data/*.jsonl"',
        )
    return read_texts(find_files(path), column=section.text_column, txt_documents=section.txt_documents)


def read_texts(files: Sequence[Path], *, column: str = "text", txt_documents: str = "file") -> Texts:
    """The documents of local files, in the order of the files.

    :raises DataError: naming the file that cannot be read, has not the column or no text in it; or when there
        are no documents at all.
    """
    full = [file for file in files if file.stat().st_size]
    columns = []
    for reader, group in itertools.groupby(full, reader_of):
        assert reader is not None
        columns += _columns(reader, list(group), column=column, txt_documents=txt_documents)
    if sum(map(len, columns)) == 0:
        raise DataError(f"the dataset is empty: there are no documents in {_said(files)}")
    return Texts(columns, _fingerprint(files, f"{column}\0{txt_documents}"))


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """No messages of ``datasets``, since ours say it better, and progress bars only for who can see them."""
    verbosity = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _columns(reader: str, files: Sequence[Path], *, column: str, txt_documents: str) -> list[pa.ChunkedArray]:
    name = "text" if reader == "text" else column
    options = {"text": {"sample_by": _SAMPLE_BY[txt_documents], "encoding_errors": "replace"}}
    try:
        loaded = _load(reader, files, **options.get(reader, {}))
    except Exception as e:  # whatever Arrow, the file system or the decompressor raises
        if len(files) > 1:
            # One of them is broken, or they have different keys, which the reader cannot join but we need
            # not: file by file we learn which.
            return [
                part
                for file in files
                for part in _columns(reader, [file], column=column, txt_documents=txt_documents)
            ]
        if isinstance(e, StopIteration) or (reader == "parquet" and _has_no_rows(files[0])):
            return []  # which the readers take for an error
        raise _unreadable(files[0], e) from e
    if name not in loaded.column_names:
        choices = ", ".join(map(repr, loaded.column_names))
        raise DataError(
            f"no column '{name}' in {_said(files)}", hint=f"set text_dataset.text_column to one of: {choices}"
        )
    values = loaded.data.column(name)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise DataError(f"column '{name}' of {_said(files)} is not text but {values.type}")
    return [values]


def _load(reader: str, files: Sequence[Path], **options: str) -> datasets.Dataset:
    with quiet_datasets():
        return datasets.load_dataset(
            reader,
            data_files=[glob.escape(str(file)) for file in files],
            split="train",
            verification_mode="no_checks",
            **options,
        )


def _has_no_rows(file: Path) -> bool:
    try:
        rows: int = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return False
    return rows == 0


def _unreadable(file: Path, error: Exception) -> DataError:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    said = str(cause).strip().splitlines() or [type(cause).__name__]
    hint = ""
    if file.suffix == ".zst" and "zstd" in said[0]:
        hint = "pip install zstandard"
    elif isinstance(cause, OSError) and cause.filename not in (None, str(file)):
        hint = "datasets keeps its files in the folder that HF_DATASETS_CACHE names"
    return DataError(f"cannot read '{file}': {said[0]}", hint=hint)


def _said(files: Sequence[Path]) -> str:
    return f"'{files[0]}'" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _fingerprint(files: Sequence[Path], settings: str) -> str:
    """Of names below the folder that all share, and sizes: files may move to another machine."""
    base = os.path.commonpath([file.parent for file in files])
    listing = [f"{os.path.relpath(file, base)}\0{file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join([settings, *listing]).encode("utf-8", "surrogateescape")).hexdigest()[:32]
