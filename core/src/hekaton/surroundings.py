"""What surrounds the steps of a run: determinism, garbage collection, the configuration written beside it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hekaton.checkpoint.disk.folders import write_whole
from hekaton.config import to_toml
from hekaton.distributed import Process
from hekaton.errors import ConfigError

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.config.sections import DebugSection

log = logging.getLogger("hekaton")


def set_determinism(debug: DebugSection, *, rank: int) -> None:
    """Seed this rank's generators, and restrict torch to deterministic algorithms where that is asked for."""
    torch.manual_seed((debug.seed or 0) + rank)
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True, warn_only=debug.deterministic_warn_only)
        torch.backends.cudnn.benchmark = False


def write_config(config: JobConfig, process: Process) -> None:
    """Write the resolved configuration beside the run, on rank 0. A run that only loads has it in a file of
    its own, where it names one."""
    if process.rank != 0:
        return
    text = to_toml(config)
    if config.job.print_config:
        log.info("configuration:\n%s", text)
    if config.only_loads() and not config.job.save_config_file:
        return
    path = Path(config.job.dump_folder, config.job.save_config_file or "config.toml")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In place of whatever has the name: not through a link, nor into a FIFO.
        write_whole(path, text.encode())


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Raise what the disk says as an error that names ``job.dump_folder``."""
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"cannot write to '{path}': {e.strerror or e}", hint="choose another job.dump_folder"
        ) from e


@contextlib.contextmanager
def collected_garbage(freq: int, *, debug: bool) -> Iterator[Callable[[int], None]]:
    """Collect garbage every ``freq`` steps, on every rank at the same one, instead of whenever Python does:
    a rank that collects alone keeps all others waiting."""
    gc.disable()
    if debug:
        gc.set_debug(gc.DEBUG_STATS)
    gc.collect(1)

    def collect(step: int) -> None:
        if step % freq == 0:
            gc.collect(1)

    try:
        yield collect
    finally:
        gc.set_debug(0)
        gc.enable()
