"""``hekaton train FILE [FILE...] [flags]``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hekaton.errors import AGAIN, INTERRUPTED
from hekaton.launchers import adopt_launcher, share_cores
from hekaton.stop_signals import end_on_signals, stop_when_torchrun_is_gone

if TYPE_CHECKING:
    from hekaton.config import Loaded
    from hekaton.control import Request
    from hekaton.distributed import Process
    from hekaton.trainer import Trainer

QUICK_START = """\
usage: hekaton train FILE [FILE...] [flags]

FILE describes a run. To begin, save this as run.toml:

    [model]
    name = "llama3"
    flavor = "debugmodel"
    tokenizer = "byte"

    [training]
    dataset = "python_stdlib"
    seq_len = 256
    steps = 100

    [optimizer]
    lr = 2e-3

    [lr_scheduler]
    warmup_steps = 10

and start it, after a look at what it means:

    hekaton config check run.toml
    hekaton train run.toml

'hekaton train --help' lists every flag, 'hekaton plugins' what can be named in a file."""


def run(arguments: list[str]) -> int:
    """Train: load and check the configuration, join the other processes, run."""
    from hekaton.config.flags import split_files, wants_help

    if wants_help(arguments):
        print(_help(arguments))
        return 0
    files, flags = split_files(arguments)
    if not arguments:
        print(QUICK_START, file=sys.stderr)
        return 2
    with end_on_signals():
        stop_when_torchrun_is_gone()
        if adopt_launcher():
            share_cores()
        from hekaton.accounting import process_start
        from hekaton.api.training import run_from

        return run_from(files, flags, result=_status, dry_run=_dry_run, since=process_start())


def _status(trainer: Trainer, ended_by: Request) -> int:
    if not ended_by.again:
        return 0
    checkpoint = trainer.config.checkpoint
    return AGAIN if checkpoint.enable and not checkpoint.load_only else INTERRUPTED


def _dry_run(loaded: Loaded, process: Process) -> int:
    from hekaton.dry_run.fake import run_fake
    from hekaton.running import check_and_log

    # What fake tensors stand for is a cluster's.
    check_and_log(loaded, process.world_size, "cuda", here=False)
    run_fake(loaded, process)
    return 0


def _help(arguments: list[str]) -> str:
    from hekaton.cli import plugin_flags
    from hekaton.config.flags import help_text
    from hekaton.config.job import config_class

    flags, _ = plugin_flags(arguments)
    config, _ = config_class(flags.discover())
    return help_text(config, usage="hekaton train FILE [FILE...] [flags]")
