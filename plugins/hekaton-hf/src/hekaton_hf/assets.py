"""What the folder of a tokenizer says of the model that is exported with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights.facts import TOKEN_IDS, ModelFacts, SpecialTokens, check_facts, facts_of
from hekaton_hf.folders import CONFIG, GENERATION, read_json
from hekaton_hf.large_tokenizer import LargeTokenizer
from hekaton_hf.tokenizer import HFTokenizer, pad_id
from hekaton_hf.tokenizer import build as build_tokenizer


def facts_of_assets(assets: Path) -> ModelFacts:
    """The special tokens of the tokenizer in ``assets``, and the content of its ``generation_config.json``.

    The files beside the tokenizer may know further tokens that end a text. Where they contradict it, the
    tokenizer is right: it is what texts are made into ids with.

    :raises DataError: when the tokenizer cannot be read, CheckpointError when a file beside it cannot.
    """
    generation = _if_there(assets / GENERATION)
    config = _if_there(assets / CONFIG)
    try:
        check_facts(config, generation)
    except CheckpointError as error:
        raise CheckpointError(f"'{assets}': {error.message}", hint=error.hint) from error
    beside = facts_of(config | generation, generation)
    tokenizer = _tokenizer(assets)
    tokens = beside.tokens
    if tokenizer is not None and (tokenizer.bos_id, tokenizer.eos_id) != (None, None):
        ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        own = SpecialTokens(bos_id=tokenizer.bos_id, eos_ids=ends, pad_id=pad_id(assets))
        tokens = own if tokens is None else tokens.then(own)
    rest = {key: value for key, value in generation.items() if key not in TOKEN_IDS}
    return ModelFacts(tokens=tokens, generation=rest)


def check_assets(assets: Path, config: Mapping[str, Any]) -> None:
    """Check all that an export reads of a folder of assets, or of the folder of a ``tokenizer.json``.

    :param config: the content of the ``config.json`` of the export.
    :raises CheckpointError: when there is no such folder, or as :func:`check_ids`; as well as
        :func:`facts_of_assets`.
    """
    folder = folder_of(assets)
    check_ids(folder, config)
    facts_of_assets(folder)


def folder_of(assets: Path) -> Path:
    """:raises CheckpointError: when there is no such folder."""
    folder = assets.parent if assets.is_file() else assets
    if not folder.is_dir():
        raise CheckpointError(f"hf_assets_path: there is no folder '{folder}'")
    return folder


def check_ids(assets: Path, config: Mapping[str, Any]) -> None:
    """:raises CheckpointError: when the tokenizer has ids for which the model's embedding has no row."""
    tokenizer, rows = _tokenizer(assets), config.get("vocab_size")
    if tokenizer is not None and isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"the tokenizer in '{assets}' has {tokenizer.vocab_size:,} ids, the model vocab_size = {rows:,}",
            hint="it is not the tokenizer of this model: give the folder of the one that it was trained with",
        )


def _tokenizer(assets: Path) -> HFTokenizer | LargeTokenizer | None:
    return build_tokenizer(None, str(assets)) if (assets / "tokenizer.json").is_file() else None


def _if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
