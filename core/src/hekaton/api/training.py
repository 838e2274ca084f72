"""``hekaton.train``, and the one way from a configuration to its run, which ``hekaton train`` goes too."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hekaton.api.places import location
from hekaton.config import load, to_toml
from hekaton.environment import launched
from hekaton.errors import ConfigError
from hekaton.failures.early import told_to_the_others
from hekaton.interrupts import imports_are_finished

if TYPE_CHECKING:
    from torch import nn

    from hekaton.config import Loaded
    from hekaton.control import Request
    from hekaton.data import TextTokenizer
    from hekaton.distributed import Process
    from hekaton.metrics import MetricLogger
    from hekaton.trainer import Trainer

T = TypeVar("T")
_ONE = threading.Lock()
"""What a run changes of its process, and its process group, are of the process: two would mix theirs up."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run that has ended.

    :param folder: what it wrote is there, and :func:`hekaton.load` and :func:`hekaton.runs` take it.
    :param step: the last step that was done.
    :param metrics: for each report of ``metrics.log_freq`` its step and its numbers, oldest first; a
        validation has an entry of its own.
    :param model: what was trained, on the device of the run, in eval mode: the model's own class, converted
        as the configuration says, with its weights in ``training.dtype``.
    :param config: the resolved configuration, as tables.
    :param stopped: why the run ended before its last step; empty if it did not.
    """

    folder: Path
    step: int
    metrics: list[dict[str, float]]
    model: nn.Module
    tokenizer: TextTokenizer
    config: dict[str, Any]
    stopped: tuple[str, ...]

    def __str__(self) -> str:
        last = self.metrics[-1] if self.metrics else {}
        loss = f", loss {last['loss']:.4f}" if "loss" in last else ""
        return f"run in {self.folder}, step {self.step}{loss}"


@imports_are_finished()
def train(*files: str | PathLike[str], **fields: Any) -> TrainedRun:
    """Train in this process, on one device, and return the run.

    The same as ``hekaton train`` with these files: the same numbers, files and messages, and a run that has
    checkpoints resumes. Ctrl-C, or a notebook's button, ends the step in hand, saves where checkpoints are
    on, and returns what there is; a second one raises :class:`KeyboardInterrupt`. Afterwards the random
    state, the threads, the default dtype, the loggers, the signal handlers and the environment of this
    process are as they were.

    >>> run = train("run.toml", training={"steps": 100}, optimizer={"lr": 1e-3})  # doctest: +SKIP

    :param files: TOML files, merged from left to right.
    :param fields: sections of such a file as mappings, which count more; or ``**{"training.steps": 100}``.
    :raises HekatonError: with the text that the command line prints.
    """
    from hekaton.api.untouched import untouched

    kept = _Kept()
    with _one_at_a_time(), untouched():
        return run_from(
            [*map(_path, files)],
            fields=fields,
            result=lambda trainer, ended_by: _trained(trainer, ended_by, kept.metrics),
            dry_run=_no_dry_run,
            loggers=[kept],
        )


def run_from(
    files: Sequence[str | Path],
    flags: Sequence[str] = (),
    *,
    fields: Mapping[str, Any] | None = None,
    result: Callable[[Trainer, Request], T],
    dry_run: Callable[[Loaded, Process], T],
    loggers: Sequence[MetricLogger] = (),
    since: float | None = None,
) -> T:
    """Go from a configuration to the end of its run, as one of its processes.

    :param flags: of a command line, which count more than the files, and so do ``fields``.
    :param result: of the trainer and of what ended the run, called while the process group is there.
    :param dry_run: called in place of training where ``comm.mode`` is ``fake_backend``.
    :param loggers: get the metrics beside the loggers that are configured.
    :param since: when the process began to work on this run, in seconds since the epoch; now by default.
    :raises HekatonError: for what the configuration asks for and cannot have, and what goes wrong in a run.
    """
    with told_to_the_others():
        loaded = load(files, flags, fields=fields)
        # Brings torch, which takes a second or two: what is wrong with the files is said before.
        from hekaton.running import prepared, run

        loaded, process = prepared(loaded)
    if loaded.config.comm.mode == "fake_backend":
        return dry_run(loaded, process)
    return run(loaded, process, result, loggers=loggers, since=since)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """:raises ConfigError: where this process trains already, has a process group, or is one of several."""
    import torch.distributed as dist

    if not _ONE.acquire(blocking=False):
        raise ConfigError(
            "a run of this process has not ended: hekaton.train() trains one at a time",
            hint="wait for its end, or start runs side by side with hekaton train",
        )
    try:
        if dist.is_initialized():
            raise ConfigError(
                "hekaton.train() starts a process group of its own, and this process has one",
                hint="end it with torch.distributed.destroy_process_group(), or start the run with "
                "hekaton train",
            )
        if (count := launched().world_size) > 1:
            raise ConfigError(
                f"hekaton.train() trains in one process, and the environment says WORLD_SIZE = {count}",
                hint="start a run of several processes with hekaton train FILE, under torchrun",
            )
        yield
    finally:
        _ONE.release()


class _Kept:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append({"step": step, **metrics})

    def close(self) -> None:
        """Nothing is left to write."""


def _trained(trainer: Trainer, ended_by: Request, metrics: list[dict[str, float]]) -> TrainedRun:
    import tomllib

    from hekaton.loading import plain_model

    config, assembled = trainer.config, trainer.assembled
    assert assembled.tokenizer is not None
    if ended_by.again and not config.checkpoint.enable:
        logging.getLogger("hekaton").info("notice: nothing is saved, since checkpoint.enable is not set")
    return TrainedRun(
        folder=Path(config.job.dump_folder),
        step=trainer.step,
        metrics=metrics,
        model=plain_model(config, trainer.plugins, trainer.model_parts, device=trainer.process.device),
        tokenizer=assembled.tokenizer,
        config=tomllib.loads(to_toml(config)),
        stopped=ended_by.reasons,
    )


def _no_dry_run(loaded: Loaded, process: Process) -> TrainedRun:
    raise ConfigError(
        "comm.mode = 'fake_backend' is a dry run, which trains nothing", hint="start it with hekaton train"
    )


def _path(file: str | PathLike[str]) -> Path:
    return Path(location(file, what="a TOML file", hint="sections are keywords: train(training={...})"))
