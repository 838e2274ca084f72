"""Dataset ``hub_stream``: a dataset of the Hugging Face Hub by name, read while training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from hekaton.data.contents import known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_hf.decoding import text_in
from hekaton_hf.sections import HubStreamSection
from hekaton_hf.stream.documents import buffered, check_parts, seed_of
from hekaton_hf.stream.remote import Patience, tried

log = logging.getLogger("hekaton")


@dataclass(frozen=True)
class HubPart:
    """One shard of a dataset."""

    shard: Any
    name: str
    seed: int
    section: HubStreamSection

    def texts(self) -> Iterator[str]:
        """The texts, in the order that the buffer gives them.

        :raises DataError: naming the row of one that is none, or when the Hub cannot be reached.
        """
        return buffered(self._all(), self.section.shuffle_buffer, self.seed)

    def _all(self) -> Iterator[str]:
        column = self.section.text_column
        patience = Patience(self.section.attempts, self.section.stalled_seconds, "hub_stream")
        rows: Iterator[Any] | None = None
        number, called = 0, self.name.replace("'", "")

        def following() -> Any:
            """The next row; after a failure the shard is read again up to there."""
            nonlocal rows
            try:
                rows = islice(_rows(self.shard), number - 1, None) if rows is None else rows
                return next(rows, None)
            except BaseException:
                rows = None
                raise

        while True:
            number += 1
            try:
                row = tried(following, f"{called}, row {number:,}", patience)
            except DataError:
                raise
            except Exception as e:  # what its readers raise has no bounds
                raise DataError(f"cannot read {self.name}, row {number:,}: {type(e).__name__}: {e}") from e
            if row is None:
                return
            if column not in row:
                raise DataError(
                    f"no column '{column}' in {self.name}",
                    hint=f"hub_stream.text_column is one of: {', '.join(row)}",
                )
            try:
                yield text_in(row, column)[0]
            except ValueError as e:
                raise DataError(f"{self.name}, row {number:,}: {e}") from e


def _rows(shard: Any) -> Iterator[dict[str, Any]]:
    """The rows of a shard. Iterated over as it is, a shard is shared out to the worker processes that read
    data, which here each read all of theirs."""
    for batch in shard.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


class HubStream:
    """The shards of a dataset that ``datasets`` reads as a stream."""

    def __init__(
        self,
        stream: Any,
        section: HubStreamSection,
        *,
        name: str,
        identity: str,
        files: Mapping[str, str],
    ) -> None:
        """:param files: what they are called, and what changes with the content of each."""
        self._stream, self._section, self._name, self._files = stream, section, name, files
        self._count = int(stream.num_shards)
        self.fingerprint = fingerprint(
            "hub_stream 2", identity, section.text_column, str(section.shuffle_buffer), str(self._count),
            *files.values(),
        )  # fmt: skip

    def files(self) -> dict[str, str]:
        """What is known of the content of each file."""
        return dict(self._files)

    def __len__(self) -> int:
        return self._count

    def check_rows(self, rows: int) -> None:
        """:raises DataError: where a row would have to read what another one does."""
        check_parts(rows, len(self), hint="choose a smaller training.global_batch_size")

    def fetch(self, indices: Sequence[int]) -> list[HubPart]:
        return self.fetch_shuffled(indices, [0] * len(indices))

    def fetch_shuffled(self, indices: Sequence[int], keys: Sequence[int]) -> list[HubPart]:
        return [
            HubPart(
                self._stream.shard(num_shards=self._count, index=index),
                f"shard {index} of '{self._name}'", seed_of(index, key), self._section,
            )
            for index, key in zip(indices, keys, strict=True)
        ]  # fmt: skip


def check(section: HubStreamSection, path: str | None, *, here: bool = True) -> None:
    """What :func:`build` would raise without a network."""
    if not path:
        raise DataError(
            "dataset 'hub_stream' needs the name of a dataset",
            hint='set dataset_path, for example dataset_path = "HuggingFaceFW/fineweb"',
        )
    if here and find_spec("datasets") is None:
        raise DataError(
            "dataset 'hub_stream' reads with the library datasets, which is not installed",
            hint='pip install "hekaton-hf[datasets]"',
        )


def build(section: HubStreamSection, path: str | None) -> HubStream:
    """The dataset of this name.

    :raises DataError: when ``datasets`` is not installed, or the dataset cannot be opened.
    """
    check(section, path)
    import datasets

    try:
        builder = datasets.load_dataset_builder(path, section.config or None, revision=section.revision)
        stream = builder.as_streaming_dataset(split=section.split)
    except Exception as e:  # it raises nothing narrower
        said = (str(e).strip().splitlines() or [""])[0]
        raise DataError(f"cannot open the dataset '{path}': {type(e).__name__}: {said}") from e
    features = f"{path}, {section.config}, {section.split}, {section.revision}, {stream.features}"
    log.info("hub_stream: %s shards of '%s'", f"{int(stream.num_shards):,}", path)
    return HubStream(stream, section, name=path, files=files_of(builder, section.split), identity=features)


def files_of(builder: Any, split: str) -> dict[str, str]:
    """The files of a split, and what changes with the content of each: of the Hub the commit, of a store what
    it says of them, and the content itself of those on a disk.

    :param builder: a ``datasets.DatasetBuilder``.
    :raises DataError: for one on a disk that cannot be read.
    """
    splits = builder.config.data_files or {}
    known = {}
    for name in [split] if split in splits else list(splits):
        files = splits[name]
        for file, state in zip(files, files.origin_metadata, strict=True):
            local = "://" not in file
            known[file] = known_file(Path(file)).content if local else f"{file} {' '.join(map(str, state))}"
    return known
