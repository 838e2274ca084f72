"""A run on this process, from its checked configuration to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from hekaton.config import Loaded
from hekaton.config.device_defaults import for_device
from hekaton.control import Request
from hekaton.distributed import Process, process_group, this_process
from hekaton.failures.exits import exits_are_errors
from hekaton.failures.whereabouts import Whereabouts
from hekaton.identity.handshake import agree
from hekaton.identity.subjects import of_start
from hekaton.identity.together import together
from hekaton.memory import out_of_memory_is_said
from hekaton.metrics import MetricLogger, set_up_logging
from hekaton.open_files import too_many_files_are_said
from hekaton.rules import check
from hekaton.trainer import Trainer

T = TypeVar("T")
_SMALLER = (
    "choose a smaller training.local_batch_size or training.seq_len, "
    'activation_checkpoint.mode = "full", or more processes'
)


def prepared(loaded: Loaded) -> tuple[Loaded, Process]:
    """The configuration with the defaults of the device, and the place of this process, whose log is set up.

    :raises ConfigError: for an environment that no launcher sets.
    """
    fake = loaded.config.comm.mode == "fake_backend"
    if fake:
        from hekaton.dry_run.fake import played_process

        process = played_process(loaded.config)
    else:
        process = this_process()
    set_up_logging(0 if fake else process.rank, 1 if fake else process.world_size)
    return for_device(loaded, "cuda" if fake else process.device.type), process


def run(
    loaded: Loaded,
    process: Process,
    result: Callable[[Trainer, Request], T],
    *,
    loggers: Sequence[MetricLogger] = (),
    since: float | None = None,
) -> T:
    """Train: see :func:`hekaton.api.training.run_from`."""
    where = Whereabouts(since=since)
    folder = loaded.config.job.dump_folder
    fault = loaded.config.fault
    with (
        process_group(process, loaded.config.comm, dump_folder=folder, where=where, fault=fault),
        exits_are_errors(),
        too_many_files_are_said(where),
    ):
        # Rules come after the comparison: what breaks one on a machine alone is mostly another value there.
        agree(lambda: of_start(loaded.config, loaded.plugins, process.device))
        together(lambda: check_and_log(loaded, process.world_size, process.device.type))
        with out_of_memory_is_said(where, hint=_SMALLER):
            trainer = Trainer(loaded, process, where=where, loggers=loggers)
            return result(trainer, trainer.run())


def check_and_log(loaded: Loaded, world_size: int, device_type: str, *, here: bool = True) -> None:
    """Check the configuration as a whole, and log what of it has no effect.

    :param here: whether the run is to be on this machine, whose device and memory count then.
    :raises ConfigErrors: with everything that is wrong.
    """
    idle = check(loaded, world_size=world_size, device_type=device_type, here=here)
    for notice in (*loaded.notices, *idle):
        logging.getLogger("hekaton").info("notice: %s", notice)
