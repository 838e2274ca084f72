"""``hekaton preprocess IN... OUT``: tokenise texts once, into a corpus that dataset ``tokens`` reads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from hekaton.cli import plugin_flags
from hekaton.cli.arguments import VerbParser, as_path
from hekaton.errors import ConfigError, DataError

USAGE = """\
usage: hekaton preprocess IN... OUT --tokenizer FOLDER [--workers N] [--max_bad N] [--dataset NAME]
                          [--set FIELD=VALUE]... [--shard_documents N]

Tokenise the documents of IN and write them into the folder OUT, for dataset = "tokens". The same command
resumes where an earlier one was interrupted.

  --tokenizer FOLDER     a folder with tokenizer.json, or the name of a tokenizer that needs no files, as byte
  --workers N            processes; 1 by default
  --max_bad N            lines that cannot be read are skipped and shown up to this number of them, and are an
                         error above it; 0 by default
  --dataset NAME         the dataset that reads IN; text by default
  --set FIELD=VALUE      a field of the dataset's section, such as text_column=content
  --shard_documents N    documents of one shard; a 64th of all by default, from 200 to 50000
  --plugins.load NAME    also load this module, or this .py file, as a plugin
  --plugins.disable NAME leave this plugin out"""


def run(arguments: list[str]) -> int:
    """Run ``hekaton preprocess ARGUMENTS``."""
    flags, rest = plugin_flags(arguments)
    if not rest or set(rest) & {"-h", "--help"}:
        print(USAGE)
        return 0
    given = _parsed(rest)

    from hekaton.components import build_component
    from hekaton.config.job import config_of
    from hekaton.contributions import Dataset, Tokenizer
    from hekaton.corpus.preprocess import check_target, preprocess
    from hekaton.metrics import set_up_logging

    set_up_logging(0, 1)
    plugins = flags.discover()
    plugins.check()
    config = config_of(plugins, {})
    check_target(given.target)  # before anything is read through
    encoder = plugins.get(Dataset, given.dataset).encoder
    if encoder != "text":
        raise ConfigError(
            f"dataset '{given.dataset}' has documents for the encoder '{encoder}': only texts are tokenised"
        )
    name, path = tokenizer_named(plugins, given.tokenizer)
    try:
        tokenizer = build_component(config, plugins, Tokenizer, name, path)
    except DataError as e:
        origin = "--tokenizer" if e.origin == "model.hf_assets_path" else e.origin
        raise DataError(e.message, origin=origin, hint=e.hint) from e
    settings = _settings(given.set, max_bad=given.max_bad)
    try:
        documents = build_component(
            config, plugins, Dataset, given.dataset, ",".join(given.sources) or None, settings=settings
        )
    except DataError as e:  # its fields are options here
        raise DataError(e.message, hint=_as_options(e.hint)) from e
    began = time.monotonic()
    try:
        manifest = preprocess(
            documents, tokenizer, given.target, workers=given.workers, shard_documents=given.shard_documents
        )
    except OSError as e:
        raise DataError(f"cannot write '{e.filename or given.target}': {e.strerror or e}") from e
    seconds = time.monotonic() - began
    print(
        f"{given.target}: {manifest.documents:,} documents, {manifest.tokens:,} tokens of {manifest.dtype} "
        f"in {len(manifest.shards):,} shards; {len(documents) - manifest.documents:,} empty documents left "
        f"out; {seconds:,.1f} s"
    )
    return 0


def _as_options(hint: str) -> str:
    hint = hint.replace("text_dataset.max_bad_rows = ", "--max_bad ")
    hint = hint.replace("set dataset_path, for example dataset_path = ", "name IN before OUT, for example ")
    return hint.replace("set text_dataset.text_column to", "--set text_column=NAME with")


def tokenizer_named(plugins: Any, text: str) -> tuple[str, str | None]:
    """Name and path of a tokenizer: a contribution without files, or else a folder for ``hf``."""
    from hekaton.contributions import Tokenizer

    return (text, None) if text in plugins.all(Tokenizer) and text != "hf" else ("hf", text)


def _settings(texts: Sequence[str], *, max_bad: int) -> dict[str, Any]:
    """:raises ConfigError: for a field that is given twice."""
    settings = dict(_setting(one) for one in texts)
    if len(settings) < len(texts) or (max_bad and "max_bad_rows" in settings):
        raise ConfigError("--set and --max_bad give a field twice", hint="give each once")
    return settings | ({"max_bad_rows": max_bad} if max_bad else {})


def _setting(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes FIELD=VALUE, not '{text}'")
    return name, int(value) if value.isascii() and value.isdecimal() else value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"'{text}' is no number up to 999999999")
    return int(text)


def _positive(text: str) -> int:
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return number


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = VerbParser("preprocess")
    parser.add_argument("sources", metavar="IN", nargs="*")
    parser.add_argument("target", metavar="OUT", type=as_path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workers", type=_positive, default=1)
    parser.add_argument("--max_bad", type=_count, default=0)
    parser.add_argument("--dataset", default="text")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--shard_documents", type=_positive)
    return parser.parse_args(arguments)
