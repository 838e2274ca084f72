"""``hekaton train FILE [FILE...] [flags]``."""

from __future__ import annotations


def run(arguments: list[str]) -> int:
    """Train: load and check the configuration, join the other processes, run."""
    from hekaton.config import check, load
    from hekaton.config.flags import split_files

    files, flags = split_files(arguments)
    loaded = load(files, flags)

    from hekaton.distributed import process_group, this_process
    from hekaton.metrics import set_up_logging

    process = this_process()
    set_up_logging(process.rank, process.world_size)
    check(loaded, world_size=process.world_size, device_type=process.device.type)

    from hekaton.trainer import Trainer

    with process_group(process, loaded.config.comm, dump_folder=loaded.config.job.dump_folder):
        Trainer(loaded, process).run()
    return 0
