"""What the server of test processes imports before it forks, and what must hold in it afterwards."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import hekaton

HEAVY = (
    "numpy",
    "torch",
    "torch._dynamo",
    "torch.utils.checkpoint",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor",
    "torch.distributed.tensor.parallel",
    "torch.utils.data",
    "pyarrow.parquet",
    "safetensors.torch",
    "tokenizers",
    "torch.utils.tensorboard",
    "pytest",
    "tabulate",  # which torch._dynamo imports at exit: a process that was interrupted would then end with 1
)
"""Imported where it is installed."""

ENTRY_POINTS = {"__main__", "hekaton.train", "hekaton.testing.call"}
"""Run with ``python -m``, which warns of a module that is imported already."""

SELF_MANAGED_THREADS = {"jemalloc_bg_thd"}
"""Names of threads that see to forks themselves: that of pyarrow's allocator."""


def names() -> Iterator[str]:
    """The modules to import, in order: the heavy ones, the core, what installed plugins name."""
    yield from HEAVY
    for module in pkgutil.walk_packages(hekaton.__path__, "hekaton."):
        if module.name not in ENTRY_POINTS and not module.name.endswith(".__main__"):
            yield module.name
    yield from _of_plugins()


def _of_plugins() -> Iterator[str]:
    import dataclasses

    from hekaton.contributions import Ref
    from hekaton.plugins import Plugins

    plugins = Plugins.discover()
    for info in plugins.infos:
        for record in plugins.contributions(info) if info.status == "ok" else ():
            if record.needs:  # few runs use it, and its requirements may be slow to import
                continue
            for field in dataclasses.fields(record):
                ref = getattr(record, field.name)
                if isinstance(ref, Ref):
                    yield ref.target.partition(":")[0]


def preload(without: set[str]) -> str:
    """Import them with warnings as errors, as the processes do that are forked.

    A module that cannot be imported is left to the processes, which meet its error themselves.

    :param without: modules to leave out.
    :returns: the first module whose import started a thread; empty if none did.
    """
    warnings.simplefilter("error")
    for name in names():
        if name in without:
            continue
        try:
            importlib.import_module(name)
        except Exception as e:
            print(f"not preloaded: {name}: {type(e).__name__}: {e}", file=sys.stderr)
        if other_threads():
            return name
    _fill_caches()
    return ""


def _fill_caches() -> None:
    """Build the classes of a configuration as installed plugins extend it, which pydantic does at first use,
    and read the versions and sources that the processes of a run compare. What is wrong with a plugin is left
    to the processes."""
    from hekaton.config import load
    from hekaton.errors import HekatonError
    from hekaton.identity.code import source, versions
    from hekaton.identity.imported import imported_source

    with contextlib.suppress(HekatonError):
        plugins = load([]).plugins
        for read in (versions, source, imported_source):
            read(plugins)


def other_threads() -> list[str]:
    """Names of this process's threads that a fork would lose, besides the main one."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return []
    others = {path.name for path in tasks.iterdir()} - {str(os.getpid())}
    return [name for task in others if (name := _name_of(tasks / task)) not in SELF_MANAGED_THREADS | {""}]


def _name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


def unclean() -> list[str]:
    """What there is in this process that a forked one must not inherit."""
    import torch
    import torch.distributed as dist

    found = [f"the thread '{name}'" for name in other_threads()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found.append("CUDA")
    if dist.is_available() and dist.is_initialized():
        found.append("a process group")
    return found


class Sources:
    """The files of the modules that are imported, as they were on disk."""

    def __init__(self, *, since: float) -> None:
        """:param since: when the first import began, in seconds since the epoch."""
        self._seen: dict[str, tuple[int, int]] = {}
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if path and (state := _state(path)):
                edited_meanwhile = since * 1e9 < state[0] < time.time_ns()
                self._seen[path] = (0, 0) if edited_meanwhile else state

    def changed(self) -> str:
        """A file that is not what it was; empty if all are."""
        return next((path for path, state in self._seen.items() if _state(path) != state), "")


def _state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
