"""Random draws of an objective: the same on every layout, and again after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Distribution = Literal["normal", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draws for the rows of one step that this rank reads.

    A value depends on the seed, the step, the name of the draw and the row's number in the global batch, and
    on nothing else: not on the rank, the device or the microbatches. So a run on any layout draws the same,
    and a resumed one draws what it would have drawn.

    :param step: the number of the step, from 1; in a validation that of its batch.
    :param rows: the numbers of this rank's rows in the global batch.
    :param purpose: keeps the draws of training and of validation apart.
    """

    seed: int
    step: int
    rows: Sequence[int]
    device: torch.device
    purpose: str = "training"

    def __call__(
        self, name: str, shape: Sequence[int], row: int, *, distribution: Distribution = "normal"
    ) -> torch.Tensor:
        """What is drawn under ``name`` for one row of the global batch.

        :param shape: that of one row.
        :param distribution: ``normal`` has mean 0 and variance 1, ``uniform`` lies in [0, 1).
        :returns: float32 of ``shape``, on the CPU.
        """
        key = f"{self.seed}/{self.purpose}/{self.step}/{name}/{row}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little", signed=True))
        draw = torch.randn if distribution == "normal" else torch.rand
        return draw(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")

    def normal(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Mean 0, variance 1, for every row of this rank: (rows, *shape), float32, on the device."""
        return self._all_rows(name, shape, "normal")

    def uniform(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """In [0, 1), for every row of this rank: (rows, *shape), float32, on the device."""
        return self._all_rows(name, shape, "uniform")

    def _all_rows(self, name: str, shape: Sequence[int], distribution: Distribution) -> torch.Tensor:
        drawn = torch.stack([self(name, shape, row, distribution=distribution) for row in self.rows])
        if self.device.type == "cuda":
            drawn = drawn.pin_memory()  # so that the copy does not wait for the device
        return drawn.to(self.device, non_blocking=True)
