"""Weights in external files, read at the start of a run and written at its end."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch

from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError
from hekaton.weights.counterpart import Counterpart, base_of, export
from hekaton.weights.facts import ModelFacts, facts_of_step
from hekaton.weights.fill import fill
from hekaton.weights.format import WeightFormat, WriteOptions
from hekaton.weights.merge import added

log = logging.getLogger("hekaton")


def load(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    weight_format: WeightFormat,
    model: Counterpart,
    overridden: Collection[str] = (),
    quantized: bool = False,
    leave_out: Collection[str] = (),
    adapters: Sequence[HFAdapter] = (),
    ranks: Ranks,
) -> ModelFacts:
    """Fill this rank's tensors in place; it reads what it needs of them. All ranks call it.

    :param tensors: those of the model that this rank has, whole or sharded.
    :param overridden: fields of the configuration that may differ from those of ``path``.
    :param quantized: refuse weights that are not quantized.
    :param leave_out: other models in ``path`` that are not read.
    :param adapters: of all models that are installed, for messages.
    :returns: what ``path`` says of the model beside that.
    :raises CheckpointError: on all ranks, when ``path`` is not of this model or cannot be read.
    """
    began = time.perf_counter()
    what = str(path)

    def filled() -> tuple[int, ModelFacts]:
        weights = weight_format.open(path)
        if quantized and not weights.config.get("quantization_config"):
            raise CheckpointError(
                f"checkpoint.initial_load_in_hf_quantized = true, and {what} is not quantized: its "
                "config.json has no quantization_config"
            )
        model.check_source(weights, overridden=overridden, leave_out=leave_out, adapters=adapters, what=what)
        ours = model.from_hf(weights, leave_out=leave_out, what=what)
        if ranks.is_first:
            for notice in model.table.notices(weights.tensors):
                log.warning("%s: %s", what, notice)
        model.check_shapes(ours, tensors, what=what)
        # What converters add keeps its initial values.
        there_too = {name: tensor for name, tensor in tensors.items() if name not in added(model.merges)}
        return fill(there_too, ours), model.facts_of(weights)

    count, facts = ranks.each(filled)
    if ranks.is_first:
        log.info("loaded %s: %.3f GB on this rank in %.2f s", path, count / 1e9, time.perf_counter() - began)
    return facts


def save(
    step: Path,
    target: Path,
    *,
    weight_format: WeightFormat,
    model: Counterpart,
    assets: Path | None,
    ranks: Ranks,
) -> None:
    """Write the model of a step, which is on disk, to ``target``. All ranks call it, each writes its share.

    :raises CheckpointError: on all ranks, when it cannot be written; there is no ``target`` then.
    """
    began = time.perf_counter()
    partial = target.with_name(f"{target.name}.partial")

    def prepared() -> None:
        for folder in (partial, target):
            if folder.is_symlink():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
        partial.mkdir(parents=True)

    def written() -> None:
        stored = open_model(step)
        describe = stored.manifest.describe
        weights = export(
            model,
            stored.tensors,
            dtype=None,
            facts=facts_of_step(describe),
            what=str(step),
            base=base_of(describe.get("config", {})),
        )
        weight_format.write(partial, weights, WriteOptions(assets=assets, rank=ranks.rank, ranks=ranks.size))

    def told(action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise CheckpointError(f"cannot write '{target}': {error.strerror or error}") from error

    ranks.first(lambda: told(prepared))
    ranks.each(written)
    ranks.first(lambda: told(lambda: partial.rename(target)))
    if ranks.is_first:
        log.info("wrote %s in %.2f s", target, time.perf_counter() - began)
