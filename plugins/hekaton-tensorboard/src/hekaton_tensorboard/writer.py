"""Writes metrics as TensorBoard scalars, and images."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

LONGEST_WAIT = 2
"""Seconds to wait until the clock is past the time in the names of the files that are there."""


class TensorBoardLogger:
    """A scalar per metric and step. A resumed run adds a file to the same folder: one curve."""

    def __init__(self, folder: Path) -> None:
        """:raises OSError: where no file can be made; later, TensorBoard's own thread prints a traceback."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def resume(self, step: int) -> None:
        """Start a file whose first record makes TensorBoard drop what earlier files hold after ``step``."""
        _wait_until_newer(self._folder)
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_images(self, step: int, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """An image per name and step."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        for name, pixels in images.items():
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _wait_until_newer(folder: Path) -> None:
    """Wait until a new event file is the last one by name, as TensorBoard reads them: names begin with the
    time in whole seconds, ``events.out.tfevents.SECONDS.HOST.PID.NUMBER``."""
    names = (path.name.split(".") for path in folder.glob("events.out.tfevents.*"))
    newest = max((int(name[3]) for name in names if name[3].isdecimal()), default=0)
    if newest - time.time() >= LONGEST_WAIT:
        _log.warning(
            "%s holds event files from a clock that is ahead of this one: TensorBoard may show their "
            "steps in place of this run's",
            folder,
        )
        return
    while time.time() < newest + 1:
        time.sleep(0.05)


def build(section: Any, folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder)
