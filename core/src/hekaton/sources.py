"""The datasets of a run, opened by name, and what its rows are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hekaton.components import build_component
from hekaton.contributions import Dataset, Encoder, Order, RowMaker
from hekaton.data import ChecksRows, MadeByTokenizer
from hekaton.data.blend import Blend
from hekaton.data.feed import Source
from hekaton.data.loader import check_documents
from hekaton.data.mixture import Mixture, MixtureEntry
from hekaton.data.rows import Stream
from hekaton.errors import DataError, about

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.data import DocumentEncoder, Documents, TextTokenizer
    from hekaton.plugins import Plugins


def open_dataset(
    config: JobConfig,
    plugins: Plugins,
    name: str,
    path: str | None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Documents:
    """The dataset of this name, and all that it is made of.

    :param settings: values in place of those of its own section.
    :raises DataError: when it cannot be read.
    """
    documents: Documents = build_component(config, plugins, Dataset, name, path, settings=settings)

    def open_one(entry: MixtureEntry) -> Documents:
        with about(f"source '{entry.name}'"):
            built: Documents = build_component(
                config, plugins, Dataset, entry.dataset, entry.path, settings=entry.settings
            )
        return built

    return documents.opened(open_one) if isinstance(documents, Mixture) else documents


def make_stream(
    config: JobConfig,
    plugins: Plugins,
    tokenizer: TextTokenizer,
    dataset: str,
    documents: Documents,
    *,
    seq_len: int,
    rows: int,
    repeat: bool = True,
    steps: int = -1,
    settings: Mapping[str, Any] | None = None,
) -> Stream:
    """What the rows of a batch are read from.

    :param dataset: name of the dataset that ``documents`` are of.
    :param rows: of the global batch.
    :param repeat: read epoch after epoch; otherwise each source once.
    :param steps: rows that are made of each, where documents are read once; -1 for all.
    :param settings: values in place of those of the dataset's own section.
    :raises DataError: when there are no documents.
    """
    seed = config.debug.seed or 0

    def encoder(entry: MixtureEntry) -> DocumentEncoder:
        record = plugins.get(Dataset, entry.dataset)
        shares = plugins.section_of(record) == plugins.section_of(plugins.get(Encoder, record.encoder))
        with about(_named(entry.name)):
            built: DocumentEncoder = build_component(
                config, plugins, Encoder, record.encoder, tokenizer,
                settings=entry.settings if shares else None,
            )  # fmt: skip
        return built

    one = MixtureEntry(name="", dataset=dataset, path=None, weights={}, settings=settings or {})
    mixture = documents if isinstance(documents, Mixture) else None
    entries = mixture.entries if mixture else [one]
    check_documents(documents)
    parts = mixture.parts if mixture else [documents]
    for entry, part in zip(entries, parts, strict=True):
        with about(_named(entry.name)):
            check_tokenizer(part, tokenizer)
            if isinstance(part, ChecksRows):
                part.check_rows(rows)
    maker = build_component(config, plugins, RowMaker, config.training.packing, seq_len)
    limited = not repeat and steps >= 0 and not mixture and getattr(maker, "row_is_document", False)
    return Stream(
        [
            Source(
                part,
                encoder(entry),
                build_component(config, plugins, Order, config.training.order, len(part), seed),
                epochs=entry.max_epochs if repeat else 1,
                name=entry.name,
                seed=seed,
                most=steps * rows if limited else None,
            )
            for entry, part in zip(entries, parts, strict=True)
        ],
        maker,
        rows,
        repeat,
        blend=Blend(mixture.weights, rows=rows, seed=seed) if mixture else None,
    )


def _named(source: str) -> str:
    return f"source '{source}'" if source else ""


def check_tokenizer(documents: object, tokenizer: TextTokenizer) -> None:
    """:raises DataError: for documents that another tokenizer made."""
    if isinstance(documents, MadeByTokenizer) and documents.made_with not in (None, tokenizer.fingerprint):
        raise DataError(
            "the tokens of the dataset were made with another tokenizer than the run's "
            f"({documents.vocab_size:,} ids, and this one has {tokenizer.vocab_size:,})",
            hint="set model.tokenizer and model.hf_assets_path to the one that hekaton preprocess was given",
        )
