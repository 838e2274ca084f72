"""``hekaton data verify | stats | show``: look at data without training on it."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hekaton.cli.arguments import as_path, load_files, take_number
from hekaton.errors import ConfigError, choices_hint

if TYPE_CHECKING:
    from hekaton.config import JobConfig, Loaded
    from hekaton.data.blocks import BlockReader
    from hekaton.data.feed import Source
    from hekaton.data.rows import RowReader

log = logging.getLogger("hekaton")

USAGE = """\
usage: hekaton data verify FOLDER
       hekaton data stats FILE.toml... [--documents N] [--flag value]...
       hekaton data show FILE.toml... [--step N] [--row I] [--flag value]...

verify   read a corpus of hekaton preprocess through and compare it with its checksums; the exit status is
         1, and what is wrong is named, when it is not whole
stats    count the documents and tokens of training.dataset: lengths, empty documents, those longer than a row
show     print what the model is given at a step: tokens as text, where documents begin, which tokens are no
         targets, of which source each row is

  --documents N   look at the first N documents of each dataset only
  --step N        the step, from 1; 1 by default. Steps before it are read, and not shown; of token ids their
                  lengths alone
  --row I         one row of the global batch, from 0; all by default"""

VERBS = ("verify", "stats", "show")
SOME_WRONG = 1
BATCH = 64
BAR = 40
SOON = 100
"""Steps that need no bar."""
SAID = 5.0
"""Seconds between two lines about how far the reading is."""


def run(arguments: list[str]) -> int:
    """Run ``hekaton data ARGUMENTS``.

    :returns: 0, or 1 when ``verify`` finds something wrong.
    """
    if not arguments or set(arguments) & {"-h", "--help"}:
        print(USAGE)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError(f"unknown verb 'data {verb}'", hint=choices_hint(verb, VERBS))
    from hekaton.metrics import set_up_logging

    set_up_logging(0, 1)
    if verb == "verify":
        return verify(rest)
    if verb == "stats":
        documents, rest = take_number(rest, "--documents", at_least=1)
        for line in stats(load_files(rest), most=documents):
            print(line)
        return 0
    step, rest = take_number(rest, "--step", at_least=1)
    row, rest = take_number(rest, "--row", at_least=0)
    for line in show(load_files(rest), step=step or 1, row=row, dim=sys.stdout.isatty()):
        print(line)
    return 0


def verify(arguments: list[str]) -> int:
    """Compare a corpus with its checksums."""
    from hekaton.corpus.layout import CorpusManifest
    from hekaton.corpus.layout import verify as found_wrong

    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError("hekaton data verify takes one FOLDER", hint=USAGE.split("\n\n")[0])
    folder = as_path(arguments[0])
    manifest = CorpusManifest.read(folder)
    wrong = found_wrong(folder)
    for line in wrong:
        print(f"wrong: {line}")
    if not wrong:
        print(f"{folder} is whole: {manifest.documents:,} documents, {manifest.tokens:,} tokens")
    return SOME_WRONG if wrong else 0


def stats(loaded: Loaded, *, most: int | None) -> Iterator[str]:
    """Lines about the documents of ``training.dataset``."""
    from hekaton.sources import make_stream

    config = loaded.config
    stream = make_stream(*_opened(loaded), seq_len=config.training.seq_len, rows=1)
    for source in stream.sources:
        lengths: Counter[int] = Counter()
        count = tokens = empty = long = 0
        for length in itertools.islice(_lengths(source, most), most):
            count += 1
            tokens += length
            empty += length == 0
            long += length > config.training.seq_len
            lengths[length.bit_length()] += 1
        name = source.name or config.training.dataset
        of = f" (of {len(source.documents):,})" if count < len(source.documents) else ""
        unit = stream.maker.unit
        yield f"{name}: {count:,} documents{of}, {tokens:,} {unit}, {tokens / max(count, 1):,.1f} in each"
        longer = f", {long:,} longer than a row of {config.training.seq_len:,}" if unit == "tokens" else ""
        yield f"  {empty:,} empty{longer}"
        for bits in range(min(lengths, default=0), max(lengths, default=-1) + 1):
            low, high = (1 << bits) >> 1, max((1 << bits) - 1, 0)
            share = lengths[bits] / max(lengths.values())
            yield f"  {low:>12,} to {high:<12,} {lengths[bits]:>10,}  {'█' * round(share * BAR)}".rstrip()


def _lengths(source: Source, most: int | None) -> Iterator[int]:
    """The tokens of each document; where documents are files of many texts, of each text.

    :param most: documents that are asked for.
    """
    import numpy as np

    from hekaton.data.encoders import encoded

    batch = min(BATCH, most or BATCH)
    for start in range(0, len(source.documents), batch):
        indices = range(start, min(start + batch, len(source.documents)))
        for index, document in zip(indices, source.documents.fetch(indices), strict=True):
            length, has_texts = 0, False
            for part in source.encoder.cut(document):
                (read,) = encoded(source.encoder, [part], source.documents, [index].__getitem__)
                if read.breaks is None:
                    length += len(read.ids)
                else:
                    has_texts = True
                    yield from np.diff([*read.breaks, len(read.ids)]).tolist()
            if not has_texts:
                yield length


def show(loaded: Loaded, *, step: int, row: int | None, dim: bool) -> Iterator[str]:
    """Lines about what the model is given at a step."""
    import numpy as np

    from hekaton.data.blocks import reader_of
    from hekaton.data.jump import cursor_after
    from hekaton.loss import IGNORE_INDEX
    from hekaton.sources import make_stream

    config = loaded.config
    count = config.global_batch_size(_fewest_processes(config))
    if row is not None and row >= count:
        raise ConfigError(f"--row {row}: the global batch has {count} rows, from 0")
    opened = _opened(loaded)
    stream = make_stream(*opened, seq_len=config.training.seq_len, rows=count)
    rows = range(count) if row is None else range(row, row + 1)
    cursor = cursor_after(stream, rows, step - 1)
    if cursor is None:
        reader = reader_of(stream, rows, np.zeros((len(rows), stream.cursor_width), np.int64))
        _read(reader, step - 1)
    else:
        reader = reader_of(stream, rows, cursor)
    made = reader.next()
    for index, number in enumerate(rows):
        source = made.sources[index]
        name = stream.sources[source].name if source >= 0 else "padding"
        tensors = {name: values[index] for name, values in made.tensors.items()}
        if "tokens" not in tensors or "labels" not in tensors:
            raise ConfigError(
                f"rows of training.packing = '{config.training.packing}' have no tokens to show, but "
                f"{stream.maker.unit}: {', '.join(tensors)}"
            )
        targets = int((tensors["labels"] != IGNORE_INDEX).sum())
        yield f"── step {step}, row {number}{f', source {name}' if name else ''}: {targets:,} targets"
        yield from _texts(opened[2], tensors, dim=dim)


def _read(reader: RowReader | BlockReader, steps: int) -> None:
    """Read steps, and say now and then how far that is."""
    from hekaton.progress import progress_bar

    bar = progress_bar(steps=steps, step=0) if steps >= SOON else None
    began = said = time.monotonic()
    for step in range(1, steps + 1):
        reader.next()
        if bar is not None:
            bar.show(step)
        elif time.monotonic() - said > SAID:
            said = time.monotonic()
            left = timedelta(seconds=round((said - began) / step * (steps - step)))
            log.info("read %s of the %s steps before: %s left", f"{step:,}", f"{steps:,}", left)
    if bar is not None:
        bar.close()


def _fewest_processes(config: JobConfig) -> int:
    """The smallest number of processes that the degrees fit."""
    settings = config.parallelism
    return max(1, settings.data_parallel_shard_degree) * settings.other_degrees


def _texts(tokenizer: Any, tensors: dict[str, Any], *, dim: bool) -> Iterator[str]:
    """The documents of a row, a line or more each; tokens that nothing is learned from are dim, or in ⟦ ⟧."""
    from hekaton.loss import IGNORE_INDEX

    tokens, labels = tensors["tokens"].tolist(), tensors["labels"].tolist()
    positions = tensors["positions"].tolist() if "positions" in tensors else list(range(len(tokens)))
    # A token is a target where the label of the one before it is that token.
    is_target = [False, *(label != IGNORE_INDEX for label in labels[:-1])]
    begins = [at for at, position in enumerate(positions) if position == 0]
    before, after = ("\x1b[2m", "\x1b[0m") if dim else ("⟦", "⟧")
    for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True):
        if end == len(tokens) and not any(tokens[begin:]) and not any(is_target[begin:]):
            yield f"[{end - begin:,} of padding]"
            return
        text, at = "", begin
        while at < end:
            stop = at + 1
            while stop < end and is_target[stop] == is_target[at]:
                stop += 1
            piece = _printable(tokenizer.decode(tokens[at:stop]))
            text += piece if is_target[at] or not piece else f"{before}{piece}{after}"
            at = stop
        yield f"[{end - begin:,} tokens] {text}"


def _printable(text: str) -> str:
    """Without the control characters by which data could write to a terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _opened(loaded: Loaded) -> tuple[Any, ...]:
    """The first arguments of :func:`hekaton.sources.make_stream`."""
    from hekaton.components import build_component
    from hekaton.contributions import Tokenizer
    from hekaton.sources import open_dataset

    config, plugins = loaded.config, loaded.plugins
    tokenizer = build_component(
        config, plugins, Tokenizer, config.model.tokenizer, config.model.hf_assets_path
    )
    name = config.training.dataset
    return config, plugins, tokenizer, name, open_dataset(config, plugins, name, config.training.dataset_path)
