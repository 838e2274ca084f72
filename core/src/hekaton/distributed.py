"""The process that this is among the others: rank, device, process group."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hekaton.environment import ADDRESS, launched, number
from hekaton.errors import ConfigError, HekatonError
from hekaton.failures.arrival import meet, open_store
from hekaton.failures.board import Board
from hekaton.failures.hang import hangs_are_shown
from hekaton.failures.shown import STORE_STAYS, first_cause_is_shown, tell_torchrun
from hekaton.failures.watch import ended_with_the_others
from hekaton.failures.whereabouts import Whereabouts
from hekaton.launchers import idle_devices
from hekaton.torch_versions import set_group_timeout

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from hekaton.config.sections import CommSection, FaultSection


log = logging.getLogger("hekaton")

CONNECTED_AT_ONCE = 16
"""Processes of a run in which gloo connects each with all others at the start: a network that lets only some
of them through is noticed before anything is built. Among more processes each connects with those that it
exchanges something with, when it first does. All with all takes a socket for each other process and group,
and what is sent through the store grows with the cube of their number."""


@dataclass(frozen=True)
class Process:
    """One process of a run, as torchrun started it; without torchrun, the only one."""

    rank: int
    world_size: int
    device: torch.device


def this_process() -> Process:
    """Read the rank and the world size from the environment, and choose the device.

    :raises ConfigError: where the environment contradicts itself, or has more processes than devices.
    """
    place = launched()
    if not torch.cuda.is_available():
        return Process(place.rank, place.world_size, torch.device("cpu"))
    devices = torch.cuda.device_count()
    if idle := idle_devices(devices, os.environ):
        if place.rank == 0:
            log.info("notice: %s", idle)
    elif number("SLURM_GPUS_ON_NODE", default=0) > devices:
        # SLURM shows each task its own device only (--gpus-per-task).
        return Process(place.rank, place.world_size, torch.device("cuda", 0))
    if place.local_rank >= devices:
        raise ConfigError(
            f"process {place.local_rank + 1} of this machine finds {devices} CUDA device(s)",
            hint=f"start at most {devices} processes on it, or look at CUDA_VISIBLE_DEVICES",
        )
    return Process(place.rank, place.world_size, torch.device("cuda", place.local_rank))


@contextlib.contextmanager
def process_group(
    process: Process,
    settings: CommSection,
    *,
    dump_folder: str,
    where: Whereabouts | None = None,
    fault: FaultSection | None = None,
) -> Iterator[None]:
    """Start the default process group, and end it however the run ends.

    A single process gets one as well, so that there is one way through the code. On CUDA there is gloo
    beside NCCL, for what lives on the CPU.

    :param where: what the trainer keeps up to date, for a message of a failure.
    :param fault: says whether hangs are looked for.
    :raises RaisedElsewhere: when another process failed before this one.
    """
    cuda = process.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(process.device)
        folder = os.path.join(dump_folder, settings.save_traces_folder)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as e:
            if e.errno != errno.EROFS:
                raise ConfigError(f"cannot write to '{folder}': {e.strerror}") from e
            # Whether the run writes anything there that it needs is checked by check_places.
            log.warning("no traces of collectives will be kept in '%s': %s", folder, e.strerror)
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1" if settings.trace_buf_size > 0 else "0")
        os.environ.setdefault(
            "TORCH_FR_DUMP_TEMP_FILE", os.path.join(folder, settings.save_traces_file_prefix)
        )
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(settings.trace_buf_size))
    timeout = timedelta(seconds=settings.init_timeout_seconds)
    if process.world_size > CONNECTED_AT_ONCE:
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    try:
        if process.world_size == 1:
            store: Store = dist.HashStore()  # type: ignore[attr-defined]  # public, and documented
        else:
            store = open_store(process.rank, seconds=settings.init_timeout_seconds)
            board = Board(store, rank=process.rank, world_size=process.world_size)
            meet(
                store, board, rank=process.rank, world_size=process.world_size,
                seconds=settings.init_timeout_seconds,
            )  # fmt: skip
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout=timeout,
            store=store,
            rank=process.rank,
            world_size=process.world_size,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as e:
        address = ":".join(os.environ.get(name, "") for name in ADDRESS)
        raise ConfigError(
            f"cannot reach the other processes at {address} (MASTER_ADDR, MASTER_PORT) within "
            f"{settings.init_timeout_seconds} s: {str(e).splitlines()[0]}",
            hint="start all processes with one launcher such as torchrun; comm.init_timeout_seconds is how "
            "long each waits",
        ) from e
    everywhere: HekatonError | None = None
    try:
        where = where or Whereabouts()
        with contextlib.ExitStack() as shown:
            if process.world_size > 1:
                shown.enter_context(first_cause_is_shown(board, where, folder=dump_folder))
                shown.enter_context(ended_with_the_others(board, world_size=process.world_size, where=where))
            if fault is not None:
                shown.enter_context(
                    hangs_are_shown(
                        where,
                        board if process.world_size > 1 else None,
                        rank=process.rank,
                        world_size=process.world_size,
                        seconds=fault.hang_seconds,
                        abort=fault.hang == "abort",
                        folder=Path(dump_folder),
                    )
                )
            try:
                yield
            except HekatonError as error:
                if not error.everywhere:
                    raise
                everywhere = error  # no other rank needs the error
                if process.world_size > 1:
                    board.leave(STORE_STAYS)  # by the store another rank may still make a group
        if everywhere is not None:
            tell_torchrun(str(everywhere))
            raise everywhere
    finally:
        dist.destroy_process_group()


def set_timeout(seconds: int) -> None:
    """Change the timeout of every process group: short once the first step has warmed everything up."""
    from torch.distributed import distributed_c10d

    dist.barrier()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for group in distributed_c10d._world.pg_map:
        set_group_timeout(seconds, group)


def wait_for(device: torch.device) -> None:
    """Wait for what the current stream of a device has to do: not for all of its streams, since a checkpoint
    may be on its way to the host."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def all_sum(value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of ``value`` over the processes of ``group``, in place."""
    if group.size() > 1:
        dist.all_reduce(value, group=group)
    return value


def gather_along(value: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The parts of all processes of ``group``, of equal shapes, one after the other along ``dim``."""
    parts = [torch.empty_like(value) for _ in range(group.size())]
    dist.all_gather(parts, value, group=group)
    return torch.cat(parts, dim=dim)


def plain(value: torch.Tensor) -> torch.Tensor:
    """A whole tensor from a DTensor; under loss parallel the loss is one. Others are returned as they are."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
