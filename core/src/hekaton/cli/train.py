"""``hekaton train FILE [FILE...] [flags]``."""

from __future__ import annotations

import logging
import sys

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
    from hekaton.config import load
    from hekaton.config.device_defaults import for_device
    from hekaton.config.flags import split_files, wants_help

    if wants_help(arguments):
        print(_help(arguments))
        return 0
    files, flags = split_files(arguments)
    if not arguments:
        print(QUICK_START, file=sys.stderr)
        return 2
    loaded = load(files, flags)

    from hekaton.distributed import process_group, this_process
    from hekaton.metrics import set_up_logging
    from hekaton.rules import check

    fake = loaded.config.comm.mode == "fake_backend"
    if fake:
        from hekaton.dry_run.fake import played_process

        process = played_process(loaded.config)
    else:
        process = this_process()
    set_up_logging(0 if fake else process.rank, 1 if fake else process.world_size)
    # What fake tensors stand for is a cluster's.
    device_type = "cuda" if fake else process.device.type
    loaded = for_device(loaded, device_type)
    idle = check(loaded, world_size=process.world_size, device_type=device_type, here=not fake)
    for notice in (*loaded.notices, *idle):
        logging.getLogger("hekaton").info("notice: %s", notice)

    if fake:
        from hekaton.dry_run.fake import run_fake

        run_fake(loaded, process)
        return 0

    from hekaton.trainer import Trainer

    with process_group(process, loaded.config.comm, dump_folder=loaded.config.job.dump_folder):
        Trainer(loaded, process).run()
    return 0


def _help(arguments: list[str]) -> str:
    from hekaton.cli import plugin_flags
    from hekaton.config.flags import help_text
    from hekaton.config.job import config_class

    flags, _ = plugin_flags(arguments)
    config, _ = config_class(flags.discover())
    return help_text(config, usage="hekaton train FILE [FILE...] [flags]")
