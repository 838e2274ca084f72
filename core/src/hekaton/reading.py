"""The batches of a run: which rows of the global batch this rank reads, and from where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hekaton.assembly import Assembled
from hekaton.data.loader import Loader, build_loader
from hekaton.distributed import all_sum
from hekaton.objective import Batch

if TYPE_CHECKING:
    from hekaton.config.sections import DataloaderSection
    from hekaton.data import Documents


def run_loader(
    assembled: Assembled,
    documents: Documents,
    *,
    seq_len: int,
    global_batch_size: int,
    settings: DataloaderSection,
    repeat: bool = True,
) -> Loader:
    """The batches of a dataset, for the rows of the global batch that this rank reads.

    :param repeat: read epoch after epoch; otherwise all ranks stop together at the end of the first.
    """
    config, device = assembled.config, assembled.process.device
    assert assembled.tokenizer is not None

    def anything_left(mine: bool) -> bool:
        left = torch.tensor(float(mine), device=device)
        return bool(all_sum(left, assembled.meshes.loss.get_group()).item())

    return build_loader(
        documents,
        assembled.tokenizer,
        seq_len=seq_len,
        global_batch_size=global_batch_size,
        rows=assembled.rows(global_batch_size),
        seed=config.debug.seed or 0,
        packing=config.training.packing,
        repeat=repeat,
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory is not False and device.type == "cuda",
        prefetch_factor=settings.prefetch_factor,
        anything_left=anything_left,
    )


def batch_on(device: torch.device, batch: Batch) -> Batch:
    """The batch, on its way to the device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
