"""What is recorded beside weights: the configuration of the run that saved them, and its tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from hekaton.checkpoint.tensors.model_only import StoredModel
from hekaton.components import build_component
from hekaton.config import JobConfig
from hekaton.config.job import config_of
from hekaton.config.validation import ITS_PLUGINS, in_words
from hekaton.contributions import Tokenizer
from hekaton.data import TextTokenizer
from hekaton.data.byte import ByteTokenizer
from hekaton.errors import CheckpointError, DataError, HekatonError
from hekaton.identity.kept import TOKENIZER
from hekaton.parallel.fsdp import DTYPES
from hekaton.plugins import Plugins
from hekaton.weights import LazyTensor


def recorded_config(
    plugins: Plugins, stored: StoredModel, *, dtype: str | None, model: str | None, flavor: str | None
) -> JobConfig:
    """The configuration of the run that saved a step, as far as the step says it."""
    describe = stored.manifest.describe
    content = dict(describe.get("config", {}))
    said = {"name": describe.get("model"), "flavor": describe.get("flavor"), **content.get("model", {})}
    for field, given in (("name", model), ("flavor", flavor)):
        if given is None and said[field] is None:
            raise CheckpointError(
                f"{stored.folder} does not say the {field} of its model",
                hint="say --model_name NAME --model_flavor FLAVOR",
            )
        if given is not None and said[field] not in (None, given):
            raise CheckpointError(f"{stored.folder} is of {field} '{said[field]}', not '{given}'")
        said[field] = given or said[field]
    training = {**content.get("training", {}), "dtype": dtype or dtype_of(stored.tensors)}
    try:
        return config_of(plugins, {**content, "model": said, "training": training})
    except (ValidationError, HekatonError) as error:
        wrong = in_words(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(
            f"the configuration of {stored.folder} cannot be read: {wrong}", hint=ITS_PLUGINS
        ) from error


def tokenizer_of_run(
    config: JobConfig, plugins: Plugins, stored: StoredModel, *, assets: str | None, model: Any
) -> TextTokenizer:
    """The tokenizer that a run's configuration names, of which the step says what it was.

    :param model: the model's own configuration; one without a vocabulary needs no tokenizer.
    """
    describe = stored.manifest.describe
    if "tokenizer" not in describe.get("config", {}).get("model", {}):
        if assets is None and not hasattr(model, "vocab_size"):
            unused: Any = ByteTokenizer()
            return unused  # type: ignore[no-any-return]
        if assets is None:
            raise CheckpointError(
                f"{stored.folder} does not say its tokenizer", hint="say --hf_assets_path FOLDER"
            )
        return tokenizer_of_folder(assets, plugins, "hf")
    name, path = config.model.tokenizer, assets or config.model.hf_assets_path
    try:
        tokenizer: TextTokenizer = build_component(config, plugins, Tokenizer, name, path)
    except DataError as error:
        hint = (
            "say --hf_assets_path FOLDER"
            if assets is None
            else f"the run was trained with the tokenizer '{name}': give the folder of that one, or leave "
            "out --hf_assets_path"
        )
        raise DataError(error.message, hint=hint) from error
    was = describe.get("identity", {}).get(TOKENIZER)
    if was is not None and was != tokenizer.fingerprint:
        raise DataError(
            f"the tokenizer '{path or name}' is not the one that {stored.folder} was trained with",
            hint="say --hf_assets_path FOLDER",
        )
    return tokenizer


def tokenizer_of_folder(folder: str, plugins: Plugins, name: str) -> TextTokenizer:
    """:param name: of the tokenizer, the same as that of the format."""
    try:
        built: TextTokenizer = plugins.get(Tokenizer, name).build.function()(None, folder)
    except DataError as error:
        raise DataError(error.message, hint="say --hf_assets_path FOLDER") from error
    return built


def check_vocabulary(tokenizer: TextTokenizer, config: Any, *, what: str) -> None:
    """:raises DataError: when the tokenizer has more ids than the model has rows for."""
    rows = getattr(config, "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, the model of {what} vocab_size = {rows:,}",
            hint="it is not the tokenizer of this model: say --hf_assets_path FOLDER",
        )


def dtype_of(tensors: Mapping[str, LazyTensor]) -> str:
    """The dtype of most values; float32 where that is none to compute in."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
    return next((name for name, dtype in DTYPES.items() if dtype == most), "float32")
