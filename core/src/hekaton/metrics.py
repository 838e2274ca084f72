"""What a run says of itself: loss, speed, memory, where the time went; on the console and to loggers."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from hekaton.contributions import OF_EVALUATION
from hekaton.errors import ConfigError, PluginError
from hekaton.flops import is_flops, peak_tflops
from hekaton.progress import progress_bar

GIB = 2**30


class MetricLogger(Protocol):
    """What a logger's ``build`` returns."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Write out what is left; called once, however the run ends."""


class RunEvaluation(Protocol):
    """What an evaluation's ``build`` returns."""

    def due(self, step: int) -> bool:
        """Whether the run is evaluated after this step; the same on every process."""

    def __call__(self) -> Mapping[str, float]:
        """Evaluate, on every process together.

        :returns: metrics by name, the same on every process; each is logged as ``evaluation/NAME``.
        """


@runtime_checkable
class ImageLogger(MetricLogger, Protocol):
    """A logger that shows images as well."""

    def log_images(self, step: int, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """Take the images that were made after a step, each (height, width, 3) from 0 to 255."""


@runtime_checkable
class ResumableLogger(MetricLogger, Protocol):
    """A logger whose folder or account may hold steps of an earlier run."""

    def resume(self, step: int) -> None:
        """Called once, before the first :meth:`log`: the run resumes after ``step``, 0 for a new one.

        Steps after it that were logged before belong to a run that was cut off. They are to be removed, or no
        longer shown: this run logs them again.
        """


class Phases:
    """Seconds spent in each phase of a step. On CUDA they are taken from events on the stream, since the
    host runs ahead of the device; data loading is the host's own."""

    HOST = ("data",)

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._cuda and name not in self.HOST:
            event: Any = torch.cuda.Event
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1e3
        self._events.clear()
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds


class Meter:
    """Turns units of work and seconds since the last report into rates.

    :param unit: what is counted, as the row maker says: ``tokens``, ``images``.
    :param flops_per_unit: of forward and backward, ``None`` where the model does not give it.
    :param processes: number of processes that share the work; rates are per process.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        unit: str,
        flops_per_unit: float | None,
        processes: int,
        peak: float | None = None,
    ) -> None:
        """:param peak: of the device in TFLOP/s; by default that of its name.
        :raises PluginError: for operations that are not a finite number above 0."""
        if flops_per_unit is not None and not is_flops(flops_per_unit):
            raise PluginError(
                f"TrainSpec.flops_per_unit or flops_per_row gives {flops_per_unit!r}, not a finite number "
                "above 0",
                hint="leave it out, and no TFLOP/s are reported",
            )
        self.phases = Phases(device)
        self._device = device
        self._unit = unit
        self._flops = flops_per_unit
        self._processes = processes
        self._peak = peak or peak_tflops(device)
        self._units = 0
        self._steps = 0
        self._since = time.perf_counter()

    def start(self) -> None:
        """Begin to count time: what went before was no training."""
        self._since = time.perf_counter()

    def add(self, units: int) -> None:
        """Count one step of ``units`` over all processes."""
        self._units += units
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Do not count these seconds (a checkpoint, a validation) as training."""
        self._since += seconds

    def report(self) -> dict[str, float]:
        """Rates since the last report: per process, except for what is a share or a time per step."""
        seconds = self.phases.take()
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        rate = self._units / elapsed / self._processes
        metrics = {f"{self._unit}_per_second": rate, "step_seconds": elapsed / max(self._steps, 1)}
        if self._flops is not None:
            metrics["tflops"] = rate * self._flops / 1e12
            if self._peak is not None:
                metrics["mfu"] = metrics["tflops"] / self._peak
        metrics |= memory_gib(self._device)
        metrics["data_wait_share"] = seconds.get("data", 0.0) / elapsed
        metrics |= {f"seconds/{name}": spent / max(self._steps, 1) for name, spent in seconds.items()}
        self._units = self._steps = 0
        self._since = now
        return metrics


def is_measured(name: str) -> bool:
    """Whether a metric of :meth:`Meter.report` is of the machine, and not of what was computed."""
    measured = ("step_seconds", "tflops", "mfu", "memory_gib", "data_wait_share")
    return name in measured or name.endswith(_RATE) or name.startswith("seconds/")


def with_own(metrics: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a run with those of its model.

    :param own: what ``TrainSpec.report`` returned.
    :raises PluginError: for what is no mapping, for a name that the run has already, and for a value that is
        no number.
    """
    if not isinstance(own, Mapping):
        raise PluginError(f"TrainSpec.report gives {type(own).__name__}, not a mapping of names to numbers")
    for name, value in own.items():
        if name in metrics:
            raise PluginError(f"TrainSpec.report gives a metric '{name}', which every run has")
        if not isinstance(value, int | float):
            raise PluginError(f"TrainSpec.report gives '{name}' as {type(value).__name__}, not as a number")
    return {**metrics, **own}


def memory_gib(device: torch.device) -> dict[str, float]:
    """Peak memory: reserved on the device, or resident on a CPU."""
    if device.type == "cuda":
        return {"memory_gib": torch.cuda.max_memory_reserved(device) / GIB}
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}


OF_SET = "validation/"
"""What the metrics of sets that are validated on begin with; then come their name and the metric's."""
_RATE = "_per_second"
_SHORT = {"tokens": "tok"}

_COLUMNS = (  # metric, format, colour
    ("loss", "loss {:.4f}", "32"),
    ("validation_loss", "validation loss {:.4f}", "32"),
    ("grad_norm", "norm {:.2f}", "33"),
    ("lr", "lr {:.1e}", "36"),
    (_RATE, "{:,.0f} {unit}/s", "34"),
    ("tflops", "{:.2f} TFLOP/s", "34"),
    ("mfu", "MFU {:.1%}", "34"),
    ("memory_gib", "{:.1f} GiB", "35"),
    ("data_wait_share", "data {:.1%}", "35"),
)
_WORTH_SHOWING = 0.01
"""The share of time spent on waiting for data from which on it is shown."""


class Console:
    """A line per report, and on a terminal or in a notebook a progress bar with the time left."""

    def __init__(self, *, steps: int, step: int, colour: bool) -> None:
        self._log = logging.getLogger("hekaton")
        shown = self._log.isEnabledFor(logging.INFO)
        self._terminal = shown and sys.stderr.isatty()
        self._colour = colour and self._terminal
        self._progress = progress_bar(steps=steps, step=step) if shown else None

    def advance(self, step: int) -> None:
        if self._progress is not None:
            self._progress.show(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        cells = [(f"step {step:>6}", "")]
        rate = next((name for name in metrics if name.endswith(_RATE)), _RATE)
        unit = rate.removesuffix(_RATE)
        for column, form, colour in _COLUMNS:
            name = rate if column == _RATE else column
            if name in metrics and not self._says_little(name, metrics):
                cells.append((form.format(metrics[name], unit=_SHORT.get(unit, unit)), colour))
        for name, value in metrics.items():
            if (name.startswith(OF_SET) and name.endswith("/loss")) or name.startswith(OF_EVALUATION):
                cells.append((f"{name.removesuffix('/loss').replace('/', ' ')} {value:.4f}", "32"))
        while self._terminal and len(cells) > 2 and self._width(cells) > self._columns():
            cells.pop()
        painted = [
            f"\033[{colour}m{cell}\033[0m" if self._colour and colour else cell for cell, colour in cells
        ]
        self._log.info("  ".join(painted))

    @staticmethod
    def _says_little(name: str, metrics: Mapping[str, float]) -> bool:
        """A rate that MFU says too, and a wait of next to nothing: loggers get them all the same."""
        if name == "tflops":
            return "mfu" in metrics
        return name == "data_wait_share" and metrics[name] < _WORTH_SHOWING

    def _width(self, cells: Sequence[tuple[str, str]]) -> int:
        prefix = len(self._log.handlers[0].format(self._log.makeRecord("", 0, "", 0, "", (), None)))
        return prefix + len("  ".join(cell for cell, _ in cells))

    @staticmethod
    def _columns() -> int:
        return shutil.get_terminal_size(fallback=(100, 24)).columns

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


def log_ranks() -> frozenset[int]:
    """The ranks whose messages are shown, from ``LOG_RANK`` (separated by commas); rank 0 when not set."""
    said = os.environ.get("LOG_RANK", "").replace(" ", "") or "0"
    ranks = said.split(",")
    if not all(rank.isdecimal() for rank in ranks):
        raise ConfigError(f"LOG_RANK must be ranks separated by commas, not '{said}'")
    return frozenset(map(int, ranks))


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at the time: a progress bar replaces it, to stay below the lines."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def set_up_logging(rank: int, world_size: int) -> None:
    """Send the run's messages to stderr: all of them on the ranks in ``LOG_RANK``, warnings on the others."""
    log = logging.getLogger("hekaton")
    prefix = f"[rank{rank}] " if world_size > 1 else ""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if rank in log_ranks() else logging.WARNING)


def log_all(loggers: Sequence[MetricLogger], step: int, metrics: Mapping[str, float]) -> None:
    for logger in loggers:
        logger.log(step, metrics)
