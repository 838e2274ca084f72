"""What data promises: datasets, tokenizers, encoders, orders and row makers."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import torch

from hekaton.contributions import Dataset, Encoder, Order, RowMaker, Tokenizer
from hekaton.data.loader import Loader
from hekaton.sources import make_stream, open_dataset
from hekaton.testing.conformance.subject import CheckedContribution
from hekaton.testing.data import (
    check_dataset,
    check_encoder,
    check_order,
    check_row_maker,
    check_tokenizer,
)

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x + 1\n",
    " two  spaces, 3 + 4 = 7",
    "Größe, 東京",
)
ROWS, STEPS = 3, 4


def access(subject: CheckedContribution) -> None:
    dataset = _dataset(subject)
    before = len(dataset), dataset.fingerprint
    check_dataset(dataset, _encoder(subject))
    for which, one in (("after documents were fetched", dataset), ("opened again", _dataset(subject))):
        found = len(one), one.fingerprint
        assert found == before, f"length and fingerprint are {found} {which}, and were {before}"


def resume(subject: CheckedContribution) -> None:
    """Compare every step of one process with worker processes, and with loaders that begin in the middle."""
    whole, cursors = [], []
    with contextlib.closing(_loader(subject, ROWS)) as loader:
        for _ in range(STEPS):
            whole.append({name: value.clone() for name, value in loader.next_step().items()})
            cursors.append(loader.cursor())
    for done, workers in ((0, 2), (1, 0), (STEPS - 1, 2)):
        how = f"after {done} steps" + (f", by {workers} worker processes" if workers else "")
        loader = _loader(subject, ROWS, workers)
        with contextlib.closing(loader), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork, since Python 3.12
            if done:
                loader.seek(cursors[done - 1])
            for step, expected in enumerate(whole[done:], start=done):
                found = loader.next_step()
                for name, value in expected.items():
                    assert torch.equal(found[name], value), (
                        f"'{name}' of step {step} differs when it is read {how}"
                    )


def ids(subject: CheckedContribution) -> None:
    check_tokenizer(_tokenizer(subject), TEXTS)


def round_trip(subject: CheckedContribution) -> None:
    tokenizer = _tokenizer(subject)
    for text, encoded in zip(TEXTS, tokenizer.encode_batch(list(TEXTS)), strict=True):
        decoded = tokenizer.decode([int(one) for one in encoded])
        (again,) = tokenizer.encode_batch([decoded])
        assert np.array_equal(again, encoded), (
            f"{text!r} is decoded as {decoded!r}, which has other ids: {again.tolist()}, not "
            f"{encoded.tolist()}"
        )


def parts(subject: CheckedContribution) -> None:
    check_encoder(_encoder(subject), _documents(subject))


def epochs(subject: CheckedContribution) -> None:
    assert subject.record is not None
    for documents in (1, 17):
        check_order(subject.build(Order, subject.record.name, documents, 0), documents=documents)


def rows(subject: CheckedContribution) -> None:
    assert subject.record is not None
    maker = subject.build(RowMaker, subject.record.name, subject.loaded.config.training.seq_len)
    check_row_maker(maker, _documents(subject), _encoder(subject))


def _loader(subject: CheckedContribution, rows: int, workers: int = 0) -> Loader:
    """The run's batches, of so many rows."""
    config, plugins = subject.loaded.config, subject.loaded.plugins
    stream = make_stream(
        config, plugins, _tokenizer(subject), config.training.dataset, _dataset(subject),
        seq_len=config.training.seq_len, rows=rows,
    )  # fmt: skip
    return Loader(stream, range(rows), identity={}, num_workers=workers)


def _dataset(subject: CheckedContribution) -> Any:
    config = subject.loaded.config
    return open_dataset(config, subject.loaded.plugins, config.training.dataset, config.training.dataset_path)


def _tokenizer(subject: CheckedContribution) -> Any:
    model = subject.loaded.config.model
    return subject.build(Tokenizer, model.tokenizer, model.hf_assets_path)


def _encoder(subject: CheckedContribution) -> Any:
    """That of the run's dataset."""
    loaded = subject.loaded
    name = loaded.plugins.get(Dataset, loaded.config.training.dataset).encoder
    return subject.build(Encoder, name, _tokenizer(subject))


def _documents(subject: CheckedContribution) -> list[Any]:
    dataset = _dataset(subject)
    return list(dataset.fetch([index % len(dataset) for index in range(5)]))
