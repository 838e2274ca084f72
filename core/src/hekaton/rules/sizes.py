"""Rules of what a run reads and holds: a tokenizer that fits the model, a batch and a model in bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod

from hekaton.building import check_vocabulary
from hekaton.errors import HekatonError
from hekaton.parallel.fsdp import DTYPES
from hekaton.rules.run import Run

MAX_TOKENS = 2**30
"""Tokens of an optimizer step: above ten times the largest batches that models have been trained with."""
_BYTES_OF_TOKEN = 3 * 8
"""Token, label and position."""
_BYTES_OF_ROW = 2048
"""At least, of where a row is and what is ahead of it."""


def batch_is_in_bounds(run: Run) -> Iterator[HekatonError]:
    """A step's tokens can be held."""
    if run.fixed_row is not None:
        return
    training, validation = run.config.training, run.config.validation
    fields = ("training.local_batch_size", "training.global_batch_size", "training.seq_len")
    rows = max(training.local_batch_size, training.global_batch_size)
    if rows * training.seq_len > MAX_TOKENS:
        yield run.violation(
            f"a step of {rows:,} rows of training.seq_len = {training.seq_len:,} has "
            f"{rows * training.seq_len:,} tokens, more than {MAX_TOKENS:,}",
            *fields,
            hint=f"choose a batch of at most {max(1, MAX_TOKENS // training.seq_len):,} rows",
        )
    tokens = validation.local_batch_size * validation.seq_len
    if validation.enable and tokens > MAX_TOKENS:
        yield run.violation(
            f"validation.local_batch_size = {validation.local_batch_size:,} rows of validation.seq_len = "
            f"{validation.seq_len:,} have {tokens:,} tokens, more than {MAX_TOKENS:,}",
            "validation.local_batch_size",
            "validation.seq_len",
        )


def batches_fit_memory(run: Run) -> Iterator[HekatonError]:
    """One process has memory for the rows that it reads at once."""
    if not run.here:
        return
    training, validation = run.config.training, run.config.validation
    degree = run.data_parallel_degree or 1
    batches = {
        "training": (max(training.local_batch_size, training.global_batch_size // degree), training.seq_len)
    }
    if validation.enable:
        batches["validation"] = (validation.local_batch_size, validation.seq_len)
    available = _memory_of_host()
    for section, (rows, seq_len) in batches.items():
        if run.fixed_row is None:
            of_row, what = seq_len * _BYTES_OF_TOKEN, f" of {section}.seq_len = {seq_len:,}"
        else:
            of_row, what = sum(prod(one.shape) * one.dtype.itemsize for one in run.fixed_row), ""
        needed = rows * (of_row + _BYTES_OF_ROW)
        if needed > available:
            yield run.violation(
                f"{rows:,} rows{what} take {needed / 2**30:,.0f} GiB before "
                f"anything is computed, and this machine has {available / 2**30:,.0f} GiB",
                f"{section}.local_batch_size",
                *(["training.global_batch_size"] if section == "training" else []),
                *([f"{section}.seq_len"] if what else []),
                hint="choose fewer or shorter rows, or more processes",
            )


def weight_decay_shrinks(run: Run) -> Iterator[HekatonError]:
    """Decoupled weight decay multiplies weights by ``1 - lr * weight_decay``, which must stay above 0."""
    settings = run.config.optimizer
    if settings.name == "AdamW" and settings.lr * settings.weight_decay >= 1:
        yield run.violation(
            f"optimizer.lr {settings.lr:g} × weight_decay {settings.weight_decay:g} = "
            f"{settings.lr * settings.weight_decay:g}: each step would flip the sign of weights",
            "optimizer.lr",
            "optimizer.weight_decay",
            hint="choose values with a product far below 1",
        )


def tokenizer_fits(run: Run) -> Iterator[HekatonError]:
    """The tokenizer can be read, and the model has a row for each of its ids."""
    if not run.here:
        return
    tokenizer = run.tokenizer
    if isinstance(tokenizer, HekatonError):
        said = tokenizer
        yield run.violation(said.message, "model.hf_assets_path", "model.tokenizer", hint=said.hint)
        return
    if run.model is None:
        return  # said by the rule that is about it
    try:
        check_vocabulary(tokenizer, run.model, run.config)
    except HekatonError as e:
        yield run.violation(e.message, "model.hf_assets_path", "model.tokenizer", hint=e.hint)


def model_fits_memory(run: Run) -> Iterator[HekatonError]:
    """One process has memory for parameters, gradients and optimizer state, which it needs at least."""
    if not run.here or run.world_size != 1 or run.config.checkpoint.create_seed_checkpoint:
        return
    import torch

    meta = run.meta
    if isinstance(meta, HekatonError):
        return  # said by the rule that is about it
    if run.device_type == "cuda" and not run.config.training.enable_cpu_offload:
        available = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    else:
        available = _memory_of_host()
    count = sum(parameter.numel() for parameter in meta.model.parameters())
    needed = 2 * DTYPES[run.config.training.dtype].itemsize * count
    if available is not None and needed > available:
        yield run.violation(
            f"{run.config.model.name} {run.config.model.flavor} has {count:,} parameters: they and their "
            f"gradients take {needed / 2**30:,.0f} GiB, and this process has {available / 2**30:,.0f} GiB",
            "model.flavor",
            *run.set_below("model.overrides"),
            hint="choose a smaller flavor, or shard it over more processes",
        )


def _memory_of_host() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
