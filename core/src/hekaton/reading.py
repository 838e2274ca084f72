"""The batches of a run: which rows of the global batch this rank reads, and from where."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hekaton.assembly import Assembled
from hekaton.data.loader import Loader, identity_of
from hekaton.distributed import all_sum
from hekaton.objective import Batch
from hekaton.sources import make_stream

if TYPE_CHECKING:
    from hekaton.config.sections import DataloaderSection
    from hekaton.data import Documents


log = logging.getLogger("hekaton")


def run_loader(
    assembled: Assembled,
    dataset: str,
    documents: Documents,
    *,
    seq_len: int,
    global_batch_size: int,
    settings: DataloaderSection,
    repeat: bool = True,
) -> Loader:
    """The batches of a dataset, for the rows of the global batch that this rank reads.

    :param dataset: name of the dataset that ``documents`` are of.
    :param repeat: read epoch after epoch; otherwise all ranks stop together at the end of the first.
    """
    config, device = assembled.config, assembled.process.device
    assert assembled.tokenizer is not None

    def anything_left(mine: bool) -> bool:
        left = torch.tensor(float(mine), device=device)
        return bool(all_sum(left, assembled.meshes.loss.get_group()).item())

    stream = make_stream(
        config,
        assembled.plugins,
        assembled.tokenizer,
        dataset,
        documents,
        seq_len=seq_len,
        rows=global_batch_size,
        repeat=repeat,
    )
    identity = identity_of(
        stream,
        assembled.tokenizer,
        seed=config.debug.seed or 0,
        packing=config.training.packing,
        order=config.training.order,
    )
    return Loader(
        stream,
        assembled.rows(global_batch_size),
        identity=identity,
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory is not False and device.type == "cuda",
        prefetch_factor=settings.prefetch_factor,
        anything_left=anything_left,
    )


def shares_of_sources(loader: Loader, readers: dist.ProcessGroup) -> dict[str, float]:
    """Of each source of a mixture the tokens that the run has read, their share, and epochs.

    :param readers: the ranks that read the rows of the global batch.
    """
    progress = loader.progress()
    if not progress:
        return {}
    mine = torch.tensor([[one.tokens, one.epochs] for one in progress], dtype=torch.float64)
    whole = all_sum(mine, readers).tolist()
    total = sum(tokens for tokens, _ in whole) or 1.0
    return {
        f"data/{one.name}/{what}": value
        for one, (tokens, epochs) in zip(progress, whole, strict=True)
        for what, value in {"tokens": tokens, "share": tokens / total, "epochs": epochs}.items()
    }


def log_shares(loader: Loader, *, step: int) -> None:
    """Say what the next step is made of, where that is a mixture."""
    shares = loader.shares(step)
    if shares:
        each = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
        log.info("mixture from step %d on: %s of the tokens", step + 1, each)


def batch_on(device: torch.device, batch: Batch) -> Batch:
    """The batch, on its way to the device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
