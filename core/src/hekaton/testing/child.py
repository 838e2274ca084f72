"""What a forked process does before it runs: it becomes what a fresh interpreter would have been."""

from __future__ import annotations

import faulthandler
import importlib
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",  # its threads would be there at the fork
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # whether there are devices is asked without initialising CUDA
}
"""The server's own environment, above that of the tests."""

OF_THE_TESTS = dict(os.environ)
"""What the environment was when this was imported, before a test patched it."""

APPLIED = {
    *SETTINGS, "PYTHONPATH", "PYTHONFAULTHANDLER",
    "HF_XET_HIGH_PERFORMANCE", "HF_HUB_ENABLE_HF_TRANSFER",
    "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
}  # fmt: skip
"""Variables that need no fresh interpreter although they are read when a process starts. lm_eval sets those
of downloads, and scikit-learn those of OpenMP, in every process that imports them."""

READ_AT_IMPORT = (
    "PYTHON", "PYTORCH_", "TORCHDYNAMO_", "TORCH_LOGS", "TORCH_COMPILE", "TORCH_DEVICE_BACKEND", "HF_",
    "HUGGINGFACE_", "TRANSFORMERS_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "LD_", "MALLOC_", "ARROW_", "LANG",
    "LC_", "TZ",
)  # fmt: skip
"""How the names of variables begin that Python and libraries read when they start or are imported."""


@dataclass(frozen=True)
class ProcessRequest:
    """A process to be: ``python -m MODULE ARGUMENTS``.

    :param warnings: the action of ``python -W``; empty for Python's own filters.
    :param stdout: path of the file that it writes; likewise ``stderr``.
    """

    module: str
    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    stdout: str
    stderr: str
    warnings: str


def read_at_import(server: Mapping[str, str], asked: Mapping[str, str]) -> str:
    """A variable that takes effect at the start of a process only, and is not the server's; empty if none."""
    return next(
        (
            name
            for name in sorted({*server, *asked} - APPLIED)
            if name.startswith(READ_AT_IMPORT) and server.get(name) != asked.get(name)
        ),
        "",
    )


def become(request: ProcessRequest) -> None:
    """Run the request in this process, which was forked from the server."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    _set_streams(request)
    _set_path(_entries(before), request.cwd)
    _set_warnings(request.warnings)
    _set_state_of_libraries()
    faulthandler.enable()
    sys.argv = [request.module, *request.arguments]
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def _set_streams(request: ProcessRequest) -> None:
    # Python's streams write to these descriptors, whatever file is behind them.
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY), (1, request.stdout, append), (2, request.stderr, append),
    ):  # fmt: skip
        file = os.open(path, flags, 0o644)
        os.dup2(file, descriptor)
        os.close(file)


def _entries(pythonpath: str) -> list[str]:
    return [os.path.abspath(entry) for entry in pythonpath.split(os.pathsep) if entry]


def _set_path(of_server: list[str], cwd: str) -> None:
    """As ``python -m`` has it: the current folder, then ``PYTHONPATH``, then what is installed."""
    installed = [entry for entry in sys.path if entry not in of_server]
    sys.path[:] = [cwd, *_entries(os.environ.get("PYTHONPATH", "")), *installed]
    importlib.invalidate_caches()


def _set_warnings(action: str) -> None:
    """As ``python -W``: below what libraries have set since they were imported, above Python's own filters.

    The server imports with warnings as errors, so that such a filter has its place.
    """
    if action == "error":
        return
    filters: list[Any] = list(warnings.filters)
    warnings.resetwarnings()
    for kind, message, category, module, line in filters:
        if (kind, message, category) != ("error", None, Warning):
            texts = [getattr(text, "pattern", text) or "" for text in (message, module)]
            warnings.filterwarnings(kind, texts[0], category, texts[1], line, append=True)
        elif action:
            warnings.simplefilter(cast(Any, action), append=True)


def _set_state_of_libraries() -> None:
    import numpy as np
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(threads) if threads.isdigit() else len(os.sched_getaffinity(0)))
    # Or all forked processes would draw the same. random and uuid see to it themselves.
    np.random.seed()
    torch.default_generator.seed()
    tempfile.tempdir = None
