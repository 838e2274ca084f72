"""Writes metrics as TensorBoard scalars, and images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger:
    """A scalar per metric and step. A resumed run adds a file to the same folder: one curve."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def resume(self, step: int) -> None:
        """Start a file whose first record makes TensorBoard drop what earlier files hold after ``step``."""
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


def build(section: Any, folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder)
