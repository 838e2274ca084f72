"""Folders as transformers and diffusers write them (``save_pretrained``): ``config.json`` and safetensors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hekaton.checkpoint.disk.folders import reason_of, size_of
from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor
from hekaton.weights.facts import POSITIONS, TOKEN_IDS, SpecialTokens
from hekaton.weights.format import Weights, WriteOptions
from hekaton.weights.lazy import Region
from hekaton_hf.assets import check_ids, facts_of_assets, folder_of
from hekaton_hf.folders import CONFIG, GENERATION, read_json, write_json
from hekaton_hf.quantized import decoded
from hekaton_hf.safetensors_file import DTYPES, write_file

log = logging.getLogger("hekaton")

MODEL, OF_DIFFUSERS = "model", "diffusion_pytorch_model"
"""What the names of the files begin with, as transformers and diffusers write them."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def build(section: Any) -> HFFormat:
    """The format ``hf``."""
    return HFFormat()


class HFFormat:
    """Reads and writes folders for ``from_pretrained``."""

    def open(self, folder: Path) -> Weights:
        """:raises CheckpointError: for a file that is missing, damaged or not what it should be."""
        config = read_json(folder / CONFIG)
        generation = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
        tensors: dict[str, LazyTensor] = {}
        absent: set[str] = set()
        for file, expected in _files(folder).items():
            found = _tensors_of(folder / file)
            if expected is not None:
                _check_index(folder, file, set(expected), set(found))
                absent |= set(expected) - set(found)
            tensors |= found
        tensors = decoded(tensors, config, what=str(folder))
        return Weights(config=config, tensors=tensors, generation=generation, absent=frozenset(absent))

    def write(self, folder: Path, weights: Weights, options: WriteOptions) -> None:
        """:raises CheckpointError: when the disk refuses, or there is no folder of assets."""
        assets = None if options.assets is None else folder_of(options.assets)
        if assets is not None:
            check_ids(assets, weights.config)
        files = _shards(weights.tensors, options.max_shard_size, stem=stem_of(weights.config))
        try:
            for name in list(files)[options.rank :: options.ranks]:
                write_file(folder / name, {key: weights.tensors[key] for key in files[name]})
            if options.rank == 0:
                _write_rest(folder, weights, files, assets)
        except OSError as error:
            raise CheckpointError(f"cannot write '{folder}': {error.strerror or error}") from error


def _files(folder: Path) -> dict[str, list[str] | None]:
    """Name of a file -> the tensors in it, where an index says which."""
    for stem in (MODEL, OF_DIFFUSERS):
        if (folder / index_of(stem)).exists():
            return _listed_files(folder / index_of(stem))
        if (folder / f"{stem}.safetensors").exists():
            return {f"{stem}.safetensors": None}
    hint = "only safetensors are read: pickled weights could run code"
    if not list(folder.glob("*.bin")):
        hint = f"neither {MODEL}.safetensors nor {index_of(MODEL)}"
    raise CheckpointError(f"there are no weights in '{folder}'", hint=hint)


def _listed_files(index: Path) -> dict[str, list[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{index}' has no weight_map")
    files: dict[str, list[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"'{index}' names {file!r}, which is not a file of the folder")
        of_file = files.setdefault(file, [])
        assert of_file is not None
        of_file.append(tensor)
    return files


def index_of(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def stem_of(config: Mapping[str, Any]) -> str:
    """What the names of a model's files begin with."""
    return OF_DIFFUSERS if "_class_name" in config else MODEL


def _check_index(folder: Path, file: str, expected: set[str], found: set[str]) -> None:
    """What the index lists and the file lacks may be a tied tensor: the model says whether it is."""
    if found - expected:
        lines = [f"not in the file: {', '.join(sorted(expected - found))}"] if expected - found else []
        lines += [f"not in the index: {', '.join(sorted(found - expected))}"]
        raise CheckpointError(f"'{folder / file}' is not as its index says", hint="\n".join(lines))


def _tensors_of(file: Path) -> dict[str, LazyTensor]:
    tensors = {}
    try:
        size_of(file)  # which is a regular file's: the library would wait for the writer of a FIFO
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118, it is not a dict
                view = opened.get_slice(name)
                dtype = DTYPES.get(view.get_dtype())
                if dtype is None:
                    raise CheckpointError(
                        f"'{file}': '{name}' is of dtype {view.get_dtype()}, not known here"
                    )
                tensors[name] = LazyTensor(tuple(view.get_shape()), dtype, _loader(file, name))
    except FileNotFoundError as error:
        raise CheckpointError(f"'{file}' is missing") from error
    except OSError as error:
        raise CheckpointError(f"cannot read '{file}': {reason_of(error)}") from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot read '{file}': {error}") from error
    return tensors


def _loader(file: Path, name: str) -> Any:
    def load(region: Region) -> torch.Tensor:
        # Opened anew each time: what an open file has shown of itself counts as memory of the process.
        try:
            size_of(file)
            with safe_open(file, framework="pt") as opened:
                view = opened.get_slice(name)
                if all(
                    part.stop - part.start == size
                    for part, size in zip(region, view.get_shape(), strict=True)
                ):
                    tensor: torch.Tensor = opened.get_tensor(name)
                else:
                    tensor = view[region]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read '{name}' in '{file}': {error}") from error
        return tensor

    return load


def _shards(tensors: Mapping[str, LazyTensor], max_size: int, *, stem: str) -> dict[str, list[str]]:
    """Name of a file -> the tensors in it, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_size:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    count = len(groups)
    return {f"{stem}-{i:05}-of-{count:05}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_rest(folder: Path, weights: Weights, files: Mapping[str, list[str]], assets: Path | None) -> None:
    config = dict(weights.config)
    dtypes = {tensor.dtype for tensor in weights.tensors.values() if tensor.dtype.is_floating_point}
    if dtypes:
        config["torch_dtype"] = str(max(dtypes, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")
    facts = weights.facts
    if assets is not None:
        for name in TOKENIZER_FILES:
            if (assets / name).is_file():
                shutil.copyfile(assets / name, folder / name)
        beside = facts_of_assets(assets)
        _warn_of_another_tokenizer(assets, before=facts.tokens, beside=beside.tokens)
        facts = facts.then(beside)
    if facts.positions is not None:
        config[POSITIONS] = facts.positions
    if facts.tokens is not None:
        config |= facts.tokens.for_config()
    ids = {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
    generation = {"_from_model_config": True} if not facts.generation else dict(facts.generation)
    write_json(folder / GENERATION, generation | ids)
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in weights.tensors.values())
        where = {key: name for name, keys in files.items() for key in keys}
        write_json(
            folder / index_of(stem_of(config)), {"metadata": {"total_size": total}, "weight_map": where}
        )
    write_json(folder / CONFIG, config)


def _warn_of_another_tokenizer(
    assets: Path, *, before: SpecialTokens | None, beside: SpecialTokens | None
) -> None:
    trained = set() if before is None else set(before.eos_ids)
    copied = set() if beside is None else set(beside.eos_ids)
    if trained and copied and not trained & copied:
        log.warning(
            "the tokenizer in '%s' ends texts with id %s, the model was trained with %s: it is another one",
            assets, _listed(copied), _listed(trained),
        )  # fmt: skip


def _listed(ids: set[int]) -> str:
    return " or ".join(map(str, sorted(ids)))
