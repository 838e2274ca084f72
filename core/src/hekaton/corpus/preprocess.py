"""Tokenising a dataset once: shard after shard, each whole or not there, by several processes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hekaton.corpus.layout import MANIFEST, CorpusManifest, Shard, checksum, dtype_for, ends_file, ids_file
from hekaton.data import DocumentEncoder, Documents, TextTokenizer
from hekaton.data.encoders import TextEncoder
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError

log = logging.getLogger("hekaton")

BATCH = 64
"""Documents that are fetched and encoded together."""
PLAN = "unfinished.json"


@dataclass(frozen=True)
class _Work:
    """What every worker knows; workers are forked."""

    documents: Documents
    encoder: DocumentEncoder
    folder: Path
    dtype: str
    shard_documents: int


_work: _Work | None = None


def preprocess(
    documents: Documents,
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    workers: int = 1,
    shard_documents: int = 50_000,
) -> CorpusManifest:
    """Write the corpus of a dataset of texts into ``folder``.

    A call that was interrupted is taken up by an equal one: shards that are whole are kept.

    :param shard_documents: documents of a shard.
    :raises DataError: when the folder has something else in it, or no document has a token.
    """
    global _work
    dtype = dtype_for(tokenizer.vocab_size)
    plan = fingerprint(documents.fingerprint, tokenizer.fingerprint, dtype, str(shard_documents))
    _claim(folder, plan)
    _work = _Work(documents, TextEncoder(tokenizer), folder, dtype, shard_documents)
    numbers = range(-(-len(documents) // shard_documents))
    done = {number: shard for number in numbers if (shard := _finished(folder, number)) is not None}
    if done:
        log.info("%d of %d shards are there already", len(done), len(numbers))
    progress = _Progress(len(numbers), len(done))
    for number, shard in _results([number for number in numbers if number not in done], workers):
        done[number] = shard
        progress(shard)
    _work = None
    shards = tuple(done[number] for number in numbers)
    manifest = CorpusManifest(dtype, tokenizer.fingerprint, tokenizer.vocab_size, shards)
    if not manifest.tokens:
        raise DataError(f"the dataset is empty: none of its {len(documents):,} documents has a token")
    _write(folder / MANIFEST, manifest.to_json().encode())
    for number in numbers:
        (folder / f"{_name(number)}.json").unlink(missing_ok=True)
    (folder / PLAN).unlink()
    return manifest


def _claim(folder: Path, plan: str) -> None:
    """Begin in an empty folder, or go on where an equal call was interrupted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = folder / PLAN
        if (folder / MANIFEST).exists():
            raise DataError(f"there is a corpus in '{folder}' already", hint="choose another folder")
        if there.exists():
            if there.read_text(encoding="utf-8") != plan:
                raise DataError(
                    f"'{folder}' has what other data, another tokenizer or other options left unfinished",
                    hint="repeat that call, or remove the folder",
                )
        elif any(folder.iterdir()):
            raise DataError(f"'{folder}' is not empty", hint="choose another folder")
        _write(there, plan.encode())
    except OSError as e:
        raise DataError(f"cannot write '{e.filename}': {e.strerror}") from e


def _results(numbers: Sequence[int], workers: int) -> Iterator[tuple[int, Shard]]:
    if workers <= 1 or len(numbers) <= 1:
        for number in numbers:
            yield number, _shard(number)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        pool = multiprocessing.get_context("fork").Pool(min(workers, len(numbers)))
    with pool:
        yield from pool.imap_unordered(_numbered, numbers)


def _numbered(number: int) -> tuple[int, Shard]:
    return number, _shard(number)


def _shard(number: int) -> Shard:
    """Write one shard; its record comes last."""
    assert _work is not None
    work, name = _work, _name(number)
    first = number * work.shard_documents
    last = min(first + work.shard_documents, len(work.documents))
    shard = Shard(name, 0, 0, "", "")
    tokens, ends = 0, []
    with ids_file(work.folder, shard).open("wb") as out:
        for start in range(first, last, BATCH):
            for ids in _encoded(work, range(start, min(start + BATCH, last))):
                tokens += len(ids)
                ends.append(tokens)
                out.write(ids.astype(np.dtype(work.dtype).newbyteorder("<")).tobytes())
        _synced(out)
    with ends_file(work.folder, shard).open("wb") as out:
        out.write(np.array(ends, "<i8").tobytes())
        _synced(out)
    checksums = [checksum(file(work.folder, shard)) for file in (ids_file, ends_file)]
    shard = Shard(name, len(ends), tokens, *checksums)
    _write(work.folder / f"{name}.json", json.dumps(asdict(shard)).encode())
    return shard


def _encoded(work: _Work, indices: range) -> Iterator[Any]:
    """The ids of each document that has any, in as many arrays as it was encoded in, joined."""
    parts = [list(work.encoder.cut(document)) for document in work.documents.fetch(indices)]
    encoded = iter(work.encoder.encode([part for of_document in parts for part in of_document]))
    for of_document in parts:
        ids = np.concatenate([next(encoded).ids for _ in of_document])
        if len(ids):
            yield ids


def _finished(folder: Path, number: int) -> Shard | None:
    """A shard that an interrupted call left whole."""
    try:
        shard = Shard(**json.loads((folder / f"{_name(number)}.json").read_bytes()))
        whole = checksum(ids_file(folder, shard)) == shard.ids_checksum
        return shard if whole and checksum(ends_file(folder, shard)) == shard.ends_checksum else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # it is made anew


class _Progress:
    """Says how far it is, with tokens per second and the time that is left."""

    def __init__(self, shards: int, done: int) -> None:
        self._shards, self._done, self._new, self._tokens = shards, done, 0, 0
        self._began = time.monotonic()

    def __call__(self, shard: Shard) -> None:
        self._done += 1
        self._new += 1
        self._tokens += shard.tokens
        seconds = max(time.monotonic() - self._began, 1e-6)
        log.info(
            "shard %d of %d: %s tokens/s, %.0f s left", self._done, self._shards,
            f"{self._tokens / seconds:,.0f}", (self._shards - self._done) * seconds / self._new,
        )  # fmt: skip


def _name(number: int) -> str:
    return f"shard-{number:06d}"


def _write(file: Path, content: bytes) -> None:
    """A file that is whole or not there."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    with unfinished.open("wb") as out:
        out.write(content)
        _synced(out)
    unfinished.replace(file)


def _synced(out: Any) -> None:
    out.flush()
    os.fsync(out.fileno())
