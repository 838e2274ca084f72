"""Batches of this rank's rows, read here or in worker processes, with the cursor of what was handed out.

The cursor travels with the sequences: however far workers have read ahead, :meth:`Loader.cursor` is where the
rows are after the last step that :meth:`Loader.next_step` returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hekaton.data import DocumentEncoder, DocumentOrder, Documents, Integers, TextTokenizer
from hekaton.data.blocks import reader_of
from hekaton.data.changed_files import files_of
from hekaton.data.encoders import TextEncoder
from hekaton.data.feed import Source
from hekaton.data.identity import fingerprint
from hekaton.data.order import Shuffled
from hekaton.data.row_makers import BatchRowMaker, InOrder
from hekaton.data.rows import Sequences, Stream
from hekaton.data.workers import read_in_workers
from hekaton.errors import DataError

Identity = dict[str, str | int]

_LATER_NAMES: Identity = {"order": "shuffled", "encoder": "text"}
"""What checkpoints that do not say it were saved with."""


def build_loader(
    documents: Documents,
    tokenizer: TextTokenizer,
    *,
    seq_len: int,
    global_batch_size: int,
    rows: range,
    seed: int,
    packing: str = "documents",
    maker: BatchRowMaker | None = None,
    encoder: DocumentEncoder | None = None,
    order: DocumentOrder | None = None,
    repeat: bool = True,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int | None = None,
    anything_left: Callable[[bool], bool] | None = None,
) -> Loader:
    """The batches of one dataset, for some rows of the global batch, from the start of the documents.

    :param rows: the rows that this rank reads, in ``range(global_batch_size)``.
    :param seed: fixes the order of documents, a different one in every epoch.
    :param packing: ``documents`` or ``concat``; or else the name of ``maker``.
    :param maker: makes the rows, documents in their order by default.
    :param encoder: of the documents, which are texts by default.
    :param order: of the documents, shuffled by default.
    :param repeat: as in :class:`Stream`. Without it the last sequence of a row is padded (labels
        ``IGNORE_INDEX``), a row that is done gives padding alone, and ``next_step`` raises ``StopIteration``
        when every row is done.
    :raises DataError: when there are no documents.
    """
    assert seq_len > 0, seq_len
    check_documents(documents)
    source = Source(
        documents,
        encoder or TextEncoder(tokenizer),
        order or Shuffled(len(documents), seed),
        epochs=None if repeat else 1,
        seed=seed,
    )
    stream = Stream(
        [source],
        maker or InOrder(seq_len, packs_documents=packing == "documents"),
        global_batch_size,
        repeat,
    )
    return Loader(
        stream,
        rows,
        identity=identity_of(stream, tokenizer, seed=seed, packing=packing),
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        anything_left=anything_left,
    )


def check_documents(documents: Documents, *, what: str = "the dataset") -> None:
    """:raises DataError: when there are none."""
    if len(documents) == 0:
        raise DataError(f"{what} is empty: it has no documents")


def identity_of(
    stream: Stream, tokenizer: TextTokenizer, *, seed: int, packing: str, order: str = "shuffled"
) -> Identity:
    """What must be equal for a cursor to mean the same; see :func:`check_identity`.

    :param packing: name of the row maker, and ``order`` that of the order of documents.
    """
    prints = [source.documents.fingerprint for source in stream.sources]
    encoders = sorted({source.encoder.fingerprint for source in stream.sources})
    return {
        "documents": prints[0] if stream.blend is None else fingerprint(*prints),
        "tokenizer": tokenizer.fingerprint,
        "global_batch_size": stream.rows,
        "seed": seed,
        "packing": packing,
        "order": order,
        "encoder": ",".join(encoders),
    }


@dataclass(frozen=True)
class SourceProgress:
    """What was read of one source.

    :param tokens: that were in rows.
    :param epochs: documents read to their end, in epochs.
    """

    name: str
    tokens: int
    epochs: float


class Loader:
    """Hands out the batches of this rank's rows.

    Workers are forked, so that documents and tokenizers need not be picklable; they must not use CUDA.
    """

    def __init__(
        self,
        stream: Stream,
        rows: range,
        *,
        identity: Identity,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        anything_left: Callable[[bool], bool] | None = None,
    ) -> None:
        """:param rows: the rows of the global batch that this rank reads.
        :param prefetch_factor: steps that each worker reads ahead, 2 by default.
        :param anything_left: only for streams that end, where other ranks read the other rows. It is called
            once in every step with whether this rank's rows had anything left, and returns whether any rank's
            had, so that all ranks do the same number of steps.
        """
        assert 0 <= rows.start < rows.stop <= stream.rows, rows
        assert rows.step == 1, rows
        has_all_rows = len(rows) == stream.rows
        assert stream.repeat or has_all_rows or anything_left is not None, "ranks must agree on the last step"
        self._stream = stream
        self.rows = rows
        """The rows of the global batch that are read here."""
        self.unit, self.units_per_row = stream.maker.unit, stream.maker.units_per_row
        self.skipped = 0
        """Documents without a token that were met so far."""
        self.ended: frozenset[int] = frozenset()
        """Numbers of the sources that rows of this rank have read to the end."""
        self.sources: Sequence[int] = ()
        """The source of each row of the last step handed out, -1 for padding."""
        self._identity = identity
        self._num_workers = min(num_workers, len(rows))
        self._pin_memory = pin_memory
        self._prefetch_factor = prefetch_factor
        self._anything_left = anything_left or bool
        self._cursor: Integers = np.zeros((len(rows), stream.cursor_width), np.int64)
        self._steps: Iterator[Sequences] | None = None

    def next_step(self) -> dict[str, torch.Tensor]:
        """One sequence of each row of this rank.

        :returns: what the row maker makes, (rows of this rank, ...) each: of those of the core ``tokens`` and
            ``labels``, and ``positions`` where documents are kept apart, int64 of (rows, seq_len).
        :raises StopIteration: without ``repeat``, when no row of any rank has anything left.
        :raises DataError: when documents cannot be read or have no tokens.
        """
        if self._steps is None:
            self._steps = self._from_workers() if self._num_workers else self._inline()
        step = next(self._steps)
        if not self._stream.repeat and not self._anything_left(step.left):
            raise StopIteration
        self._cursor = step.cursor
        self.skipped += step.skipped
        self.ended, self.sources = step.ended, step.sources
        batch = {name: torch.from_numpy(values) for name, values in step.tensors.items()}
        return {name: value.pin_memory() for name, value in batch.items()} if self._pin_memory else batch

    def cursor(self) -> torch.Tensor:
        """Where the rows are after the last step handed out; int64 of (rows of this rank, cursor width). See
        :mod:`hekaton.data.rows`."""
        return torch.from_numpy(self._cursor.copy())

    def progress(self) -> list[SourceProgress]:
        """What rows of this rank have read of each source of a mixture; of one dataset alone nothing."""
        stream, cursor = self._stream, self._cursor
        if stream.blend is None:
            return []
        width = stream.maker.cursor_width + 1
        totals = cursor[:, 1:].reshape(len(cursor), len(stream.sources), width).sum(axis=0)
        return [
            SourceProgress(source.name, int(total[-1]), int(total[0]) / len(source.documents))
            for source, total in zip(stream.sources, totals, strict=True)
        ]

    def shares(self, step: int) -> dict[str, float]:
        """The share of each source of a mixture in the rows after so many steps; of one dataset nothing."""
        stream = self._stream
        if stream.blend is None:
            return {}
        names = [source.name for source in stream.sources]
        return dict(zip(names, stream.blend.shares(step), strict=True))

    def ended_names(self) -> list[str]:
        """The sources that rows of this rank have read to the end."""
        return [self._stream.sources[number].name for number in sorted(self.ended)]

    def all_ended(self) -> bool:
        """Whether a row of this rank found nothing left in any source that has a weight."""
        return bool(self.sources) and -1 in self.sources

    def seek(self, cursor: torch.Tensor) -> None:
        """Go on where the rows were when ``cursor``, (rows of this rank, cursor width), was taken, on
        whatever rank."""
        assert cursor.shape == self._cursor.shape, cursor.shape
        self.close()
        self._cursor = cursor.to("cpu", torch.int64, copy=True).numpy()

    def identity(self) -> Identity:
        """What must be equal for a cursor to mean the same; see :func:`check_identity`."""
        return dict(self._identity)

    def files(self) -> dict[str, str]:
        """What is in each file of the data, as :func:`files_of` says it."""
        return files_of(self._stream.sources)

    def close(self) -> None:
        """End the workers. A loader that is used again continues after the last step handed out."""
        self._steps = None

    def _inline(self) -> Iterator[Sequences]:
        reader = reader_of(self._stream, self.rows, self._cursor)
        while True:
            yield reader.next()

    def _from_workers(self) -> Iterator[Sequences]:
        return read_in_workers(
            self._stream, self.rows, self._cursor, workers=self._num_workers, ahead=self._prefetch_factor
        )


def check_identity(saved: Mapping[str, str | int], now: Mapping[str, str | int]) -> None:
    """Check that a cursor saved under one identity can be sought under another. ``seq_len`` is no part of it.

    :raises DataError: naming everything that differs, and the cures.
    """
    before = {**_LATER_NAMES, **saved}
    differing = [name for name in now if before.get(name) != now[name]]
    if not differing:
        return
    said = []
    for name in differing:
        if name in ("documents", "tokenizer"):
            said.append(f"the {name} differ" if name == "documents" else "the tokenizer differs")
        else:
            said.append(f"{name} was {before.get(name)} and is now {now[name]}")
    cures = {
        "documents": "set training.dataset and training.dataset_path back, to the same files",
        "tokenizer": "set model.tokenizer and model.hf_assets_path back",
        "global_batch_size": f"set training.global_batch_size = {saved.get('global_batch_size')}",
        "seed": f"set debug.seed = {saved.get('seed')}",
        "packing": f'set training.packing = "{saved.get("packing")}"',
        "order": f'set training.order = "{before["order"]}"',
        "encoder": "set training.dataset and what its documents are encoded with back",
    }
    raise DataError(
        f"the run cannot continue with the data of the checkpoint: {', '.join(said)}",
        hint="\n".join(
            [
                *(cures[name] for name in differing),
                'or start the data over: checkpoint.exclude_from_loading = ["data_loader"]',
            ]
        ),
    )
