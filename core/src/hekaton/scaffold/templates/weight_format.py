"""The checkpoint format: weights in a folder, for ``hekaton convert``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor
from hekaton.weights.format import Weights, WriteOptions
from hekaton.weights.lazy import Region

CONFIG = "config.json"


class NpyFormat:
    """A file ``NAME.npy`` for each tensor, in float32."""

    def open(self, folder: Path) -> Weights:
        """Look at a folder, without reading tensors.

        :raises CheckpointError: when it is not whole; ``config.json`` is written last.
        """
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder} has no {CONFIG}: its weights were not written to the end")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return Weights(config=config, tensors={path.stem: _lazy(path) for path in folder.glob("*.npy")})

    def write(self, folder: Path, weights: Weights, options: WriteOptions) -> None:
        """Write into an empty folder, one tensor at a time, each rank its share."""
        for number, (name, tensor) in enumerate(weights.tensors.items()):
            if number % options.ranks == options.rank:
                np.save(folder / f"{name}.npy", tensor.read().float().numpy())
        if options.rank == 0:
            (folder / CONFIG).write_text(json.dumps(dict(weights.config)), encoding="utf-8")


def _lazy(path: Path) -> LazyTensor:
    shape = np.load(path, mmap_mode="r").shape

    def load(region: Region) -> torch.Tensor:
        return torch.from_numpy(np.array(np.load(path, mmap_mode="r")[region]))

    return LazyTensor(tuple(shape), torch.float32, load)


def build(section: None) -> NpyFormat:
    return NpyFormat()
