"""Adapters in the format of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hekaton.draft import Merge
from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor, whole
from hekaton.weights.format import Unmerged, Weights, WriteOptions
from hekaton.weights.lazy import Region
from hekaton.weights.table import Entry
from hekaton_lora.linear import AddedProduct

log = logging.getLogger("hekaton")

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A = ".lora_A.weight"


class PeftFormat:
    """Writes folders for ``PeftModel.from_pretrained``."""

    def __init__(self, section: Any) -> None:
        pass

    def open(self, folder: Path) -> Weights:
        """:raises CheckpointError: always: adapters are no model."""
        raise CheckpointError(
            f"{folder}: adapters of PEFT are written, and cannot be read",
            hint="merge them into their model with PEFT's merge_and_unload, save_pretrained that, and "
            "start from it with checkpoint.initial_load_in_hf",
        )

    def write(self, folder: Path, weights: Weights, options: WriteOptions) -> None:
        """Write the adapters by the first of ``options.ranks``: they are small.

        :raises CheckpointError: as :meth:`part_of`, and when the disk refuses.
        """
        if options.rank != 0:
            return
        tensors = self.part_of(weights)
        if options.assets is not None:
            log.info("adapters are written without a tokenizer: they have that of their model")
        modules = [name.removeprefix(_PREFIX).removesuffix(_A) for name in tensors if name.endswith(_A)]
        adapters = _adapters_in(weights)
        product = adapters[0].make
        assert isinstance(product, AddedProduct)
        assert weights.unmerged is not None
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": weights.unmerged.base,
            "r": product.rank,
            "lora_alpha": int(product.alpha) if product.alpha.is_integer() else product.alpha,
            "lora_dropout": 0.0,
            "target_modules": _shortened(modules, weights.tensors),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        values = {name: tensor.read().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(values, folder / TENSORS, metadata={"format": "pt"})
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write '{folder}': {error.strerror or error}") from error

    def part_of(self, weights: Weights) -> dict[str, LazyTensor]:
        """:raises CheckpointError: for a model without adapters, and for a layer that is no layer of its own
        there."""
        adapters = _adapters_in(weights)
        assert weights.unmerged is not None
        unmerged = weights.unmerged
        others = [merge.into for merge in unmerged.merges if not _is_adapter(merge.make)]
        if others:
            raise CheckpointError(
                f"'{others[0]}' is merged from what another converter added, which PEFT has no adapter for",
                hint="hekaton convert to-hf merges everything",
            )
        entries = unmerged.table.entries_of([merge.into for merge in adapters])
        tensors: dict[str, LazyTensor] = {}
        for merge in adapters:
            module = _module_of(merge.into, entries[merge.into])
            _, a, b = (unmerged.tensors[part] for part in merge.parts)
            order = _order_of_rows(merge.into, entries[merge.into], unmerged)
            tensors[f"{_PREFIX}{module}{_A}"] = a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = whole(b.read()[order])
        return tensors

    def open_part(self, folder: Path) -> dict[str, LazyTensor]:
        """The adapters, under PEFT's names.

        :raises CheckpointError: when they cannot be read.
        """
        try:
            return {name: whole(tensor) for name, tensor in load_file(folder / TENSORS).items()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read '{folder / TENSORS}': {error}") from error


def _adapters_in(weights: Weights) -> list[Merge]:
    """:raises CheckpointError: when there are none."""
    merges = weights.unmerged.merges if weights.unmerged is not None else ()
    adapters = [merge for merge in merges if _is_adapter(merge.make)]
    if not adapters:
        raise CheckpointError(
            "there are no adapters of the converter 'lora' in this model",
            hint="hekaton convert to-hf writes the model itself",
        )
    return adapters


def _is_adapter(make: object) -> bool:
    return isinstance(make, AddedProduct)


def _module_of(weight: str, entry: Entry) -> str:
    """The layer there whose weight is made from ``weight`` alone."""
    if len(entry.ours) > 1 or len(entry.hf) > 1 or not entry.hf[0].endswith(".weight"):
        there = ", ".join(entry.hf)
        raise CheckpointError(
            f"'{weight}' has an adapter, and is a part of {there}: that layer can have none of PEFT's",
            hint="hekaton convert to-hf merges the adapters",
        )
    return entry.hf[0].removesuffix(".weight")


def _order_of_rows(weight: str, entry: Entry, unmerged: Unmerged) -> torch.Tensor:
    """Which row of ours each row of theirs is: B's rows are those of the weight.

    What the ops of an entry do to a weight shows in a matrix that holds the place of each of its values.
    """
    like = unmerged.tensors[weight]
    rows, columns = like.shape

    def places(region: Region) -> torch.Tensor:
        mine = [torch.arange(part.start, part.stop) for part in region]
        return mine[0][:, None] * columns + mine[1]

    there = LazyTensor((rows, columns), torch.int64, places)
    for op in entry.ops:
        (there,) = op.to_hf([there])
    if there.shape == (rows, columns):
        first, last = (
            there.read((slice(0, rows), slice(column, column + 1))).flatten() for column in (0, columns - 1)
        )
        order = first // columns
        if torch.equal(first, order * columns) and torch.equal(last, order * columns + columns - 1):
            return order
    raise CheckpointError(
        f"'{weight}' has an adapter, and is {entry.hf[0]} with more than its rows in another order",
        hint="hekaton convert to-hf merges the adapters",
    )


def _shortened(modules: Sequence[str], tensors: Mapping[str, LazyTensor]) -> list[str]:
    """The last components of the names, where those stand for no other layers; the whole names otherwise."""
    last = sorted({module.rpartition(".")[2] for module in modules})
    every = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    meant = {name for name in every if name.rpartition(".")[2] in last}
    return last if meant == set(modules) else sorted(modules)
