"""What a run changes of its process, put back afterwards."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import torch

from hekaton.random_state import cuda_in_use, generators_kept


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Compute gradients, on the run's device and in its precision, whatever the caller has set, and leave the
    process as it was: default dtype and device, threads, deterministic algorithms, the state of the random
    generators of Python, numpy and torch, the logger ``hekaton``, filters of warnings, the collection of
    garbage, signal handlers, the environment, the hook for exceptions, and the current device. What torch has
    compiled is forgotten.
    """
    with contextlib.ExitStack() as after:
        for put_back in (generators_kept, _torch, _logger, _garbage, _signals, _environment):
            after.enter_context(put_back())
        after.enter_context(warnings.catch_warnings())
        after.enter_context(torch.inference_mode(False))
        after.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                after.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    device = torch.cuda.current_device() if cuda_in_use() else None
    default = torch.get_default_device()
    if default.type != "cpu":
        torch.set_default_device("cpu")
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # what the process has compiled itself does not count towards the limits
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if default.type != "cpu":
            torch.set_default_device(default)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if device is not None:
            torch.cuda.set_device(device)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()


@contextlib.contextmanager
def _logger() -> Iterator[None]:
    log = logging.getLogger("hekaton")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


@contextlib.contextmanager
def _garbage() -> Iterator[None]:
    enabled, debug = gc.isenabled(), gc.get_debug()
    try:
        yield
    finally:
        gc.set_debug(debug)
        (gc.enable if enabled else gc.disable)()


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    from torch.utils.data._utils import signal_handling

    was_set = signal_handling._SIGCHLD_handler_set
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) != handler:
                    signal.signal(number, handler)
            signal_handling._SIGCHLD_handler_set = was_set  # set by the first run with data workers


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before, hook = dict(os.environ), sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = hook  # a process group puts its rank in front of each line of a traceback
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
