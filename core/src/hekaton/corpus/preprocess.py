"""Tokenising a dataset once: shard after shard, each whole or not there, by several processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from hekaton.corpus.layout import MANIFEST, CorpusManifest, Shard, checksum, dtype_for, ends_file, ids_file
from hekaton.corpus.workers import Counts, results_of
from hekaton.data import DocumentEncoder, Documents, TextTokenizer
from hekaton.data.encoders import TextEncoder
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError

log = logging.getLogger("hekaton")

BATCH = 64
"""Documents that are fetched and encoded together."""
PLAN = "unfinished.json"
SHARDS = 64
"""Of a corpus, where their documents are then no more than ``MOST_OF_SHARD`` and no less than the least."""
LEAST_OF_SHARD, MOST_OF_SHARD = 200, 50_000
_SAID = 5.0
"""Seconds from one line about the progress to the next."""


@dataclass(frozen=True)
class _Work:
    """What every worker knows; workers are forked."""

    documents: Documents
    encoder: DocumentEncoder
    folder: Path
    dtype: str
    shard_documents: int
    counts: Counts

    def indices(self, number: int) -> range:
        """The documents of a shard."""
        first = number * self.shard_documents
        return range(first, min(first + self.shard_documents, len(self.documents)))


_work: _Work | None = None


def preprocess(
    documents: Documents,
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    workers: int = 1,
    shard_documents: int | None = None,
) -> CorpusManifest:
    """Write the corpus of a dataset of texts into ``folder``.

    A call that was interrupted is taken up by an equal one: shards that are whole are kept.

    :param workers: processes; there are no more than shards.
    :param shard_documents: documents of a shard; by default a 64th of all, but no less than 200 and no
        more than 50,000.
    :raises DataError: when the folder has something else in it or is in use, a worker died, or no document
        has a token.
    """
    global _work
    if shard_documents is None:
        shard_documents = min(max(-(-len(documents) // SHARDS), LEAST_OF_SHARD), MOST_OF_SHARD)
    dtype = dtype_for(tokenizer.vocab_size)
    plan = fingerprint(documents.fingerprint, tokenizer.fingerprint, dtype, str(shard_documents))
    numbers = range(-(-len(documents) // shard_documents))
    with _claimed(folder, plan):
        done = {number: shard for number in numbers if (shard := _finished(folder, number)) is not None}
        if done:
            log.info("%d of %d shards are there already", len(done), len(numbers))
        left = [number for number in numbers if number not in done]
        if workers > len(left) > 0:
            log.info(
                "notice: %d workers have nothing to do, since the shards are %d; shards of fewer documents "
                "are more: --shard_documents", workers - len(left), len(left),
            )  # fmt: skip
            workers = len(left)
        progress = _Progress()
        counts = Counts(progress, shared=workers > 1)
        _work = _Work(documents, TextEncoder(tokenizer), folder, dtype, shard_documents, counts)
        progress.left = sum(len(_work.indices(number)) for number in left)
        try:
            with contextlib.closing(results_of(_shard, left, workers=workers, counts=counts)) as made:
                done |= made
        except KeyboardInterrupt:
            log.info("interrupted: the same command resumes with the shards that are not whole")
            raise
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


def check_target(folder: Path) -> None:
    """:raises DataError: when no corpus can be begun in a folder, and none is that could be taken up."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is no folder", hint="name the folder that is written behind IN")
    try:
        if (folder / MANIFEST).exists():
            raise DataError(f"there is a corpus in '{folder}' already", hint="choose another folder")
        if folder.exists() and not (folder / PLAN).exists() and any(folder.iterdir()):
            raise DataError(f"'{folder}' is not empty", hint="choose another folder")
    except OSError as e:
        raise DataError(f"cannot write '{e.filename}': {e.strerror}") from e


@contextlib.contextmanager
def _claimed(folder: Path, plan: str) -> Iterator[None]:
    """Begin in an empty folder, or where an equal call was interrupted, and be the only one there."""
    check_target(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = (folder / PLAN).open("a+b")
    except OSError as e:
        raise DataError(f"cannot write '{e.filename}': {e.strerror}") from e
    with there:
        try:
            fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise DataError(f"another process is writing a corpus into '{folder}'") from e
        except OSError as e:
            log.debug("no locks in '%s': %s", folder, e.strerror)
        check_target(folder)  # another process may have finished it a moment ago
        there.seek(0)
        if (begun := there.read()) not in (b"", plan.encode()):
            raise DataError(
                f"'{folder}' has what other data, another tokenizer or other options left unfinished",
                hint="repeat that call, or remove the folder",
            )
        if not begun:
            there.write(plan.encode())
            _synced(there)
        yield


def _shard(number: int) -> Shard:
    """Write one shard; its record comes last."""
    assert _work is not None
    work, name = _work, _name(number)
    indices = work.indices(number)
    shard = Shard(name, 0, 0, "", "")
    tokens, ends = 0, [np.zeros(0, np.int64)]
    dtype = np.dtype(work.dtype).newbyteorder("<")
    with ids_file(work.folder, shard).open("wb") as out:
        for start in range(0, len(indices), BATCH):
            batch = indices[start : start + BATCH]
            encoded = list(_encoded(work, batch))
            if encoded:
                ends.append(tokens + np.cumsum([len(ids) for ids in encoded]))
                out.write(np.concatenate(encoded, dtype=dtype, casting="unsafe").tobytes())
            added = sum(map(len, encoded))
            tokens += added
            work.counts.add(len(batch), added)
        _synced(out)
    with ends_file(work.folder, shard).open("wb") as out:
        out.write(np.concatenate(ends, dtype="<i8").tobytes())
        _synced(out)
    checksums = [checksum(file(work.folder, shard)) for file in (ids_file, ends_file)]
    shard = Shard(name, sum(map(len, ends)), tokens, *checksums)
    _write(work.folder / f"{name}.json", json.dumps(asdict(shard)).encode())
    return shard


def _encoded(work: _Work, indices: range) -> Iterator[Any]:
    """The ids of each document that has any, in as many arrays as it was encoded in, joined."""
    parts = [list(work.encoder.cut(document)) for document in work.documents.fetch(indices)]
    encoded = iter(work.encoder.encode([part for of_document in parts for part in of_document]))
    for of_document in parts:
        ids = next(encoded).ids
        if len(of_document) > 1:
            ids = np.concatenate([ids, *(next(encoded).ids for _ in of_document[1:])])
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
    """Says how far it is every few seconds, with tokens per second and the time that is left."""

    def __init__(self) -> None:
        self.left = 0
        """Documents to do, in all."""
        self._began = self._said = time.monotonic()
        self._said_of = 0
        """Documents that the last line was of."""

    def __call__(self, documents: int, tokens: int) -> None:
        now = time.monotonic()
        if documents == self._said_of or (now - self._said < _SAID and documents < self.left):
            return
        self._said, self._said_of, seconds = now, documents, max(now - self._began, 1e-6)
        log.info(
            "%s of %s documents: %s tokens/s, %s left", f"{documents:,}", f"{self.left:,}",
            f"{tokens / seconds:,.0f}",
            timedelta(seconds=round((self.left - documents) * seconds / documents)),
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
