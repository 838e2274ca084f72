"""How long training waits for a checkpoint: saved at once, or in the background.

    python benchmarks/checkpoint_stall.py [--repeats 7] [--parameters 100] [--folder PATH]

The state is that of a run in float32: weights and the two moments of AdamW, 12 bytes a parameter. In turns
it is saved (what training waits for without async_mode), its save in the background is started (what training
waits for with async_mode = "async", when the save before is done), and copied once within memory, the least
that a copy of the state can cost on a CPU. What is left to be written is flushed before the clock starts.
Medians, and medians of the ratios within a turn, are printed; the first turn, in which memory is new, apart.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.background import BackgroundSaves

SIZE = (2048, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--parameters", type=int, default=100, help="millions of parameters")
    parser.add_argument("--folder", help="where to write; the folder for temporary files if not given")
    arguments = parser.parse_args()
    logging.disable()
    count = max(1, arguments.parameters * 10**6 // torch.Size(SIZE).numel())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), count, repeats=arguments.repeats)


def run(folder: Path, count: int, *, repeats: int) -> None:
    torch.manual_seed(0)
    weights = {f"weight_{i}": torch.randn(SIZE) for i in range(count)}
    moments = {f"{name}.{key}": torch.randn(SIZE) for name in weights for key in ("exp_avg", "exp_avg_sq")}
    parts = {"model": weights, "optimizer": moments}
    tensors = [*weights.values(), *moments.values()]
    copies = [torch.empty_like(tensor) for tensor in tensors]
    gb = sum(tensor.nbytes for tensor in tensors) / 1e9

    manager = CheckpointManager(folder, describe={}, keep_latest_k=1)
    saves = BackgroundSaves(manager, pinned=False, saved=lambda *_: None)
    steps = itertools.count(1)

    def copy() -> None:
        for target, tensor in zip(copies, tensors, strict=True):
            target.copy_(tensor)

    sides: dict[str, Callable[[], object]] = {
        "save": lambda: manager.save(next(steps), parts, {}),
        "background save": lambda: saves.start(next(steps), parts, {}, good=True),
        "memory copy": copy,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    print(f"{gb:.2f} GB, {repeats} turns", flush=True)
    for _ in range(repeats + 1):
        for name, side in sides.items():
            os.sync()
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
            saves.wait()
    for name, (first, *rest) in seconds.items():
        share = statistics.median(a / b for a, b in zip(rest, seconds["save"][1:], strict=True))
        spent = statistics.median(rest)
        print(
            f"{name:16}{spent:7.3f} s  {gb / spent:6.2f} GB/s  {share:5.2f} of a save   (first {first:.3f} s)"
        )


if __name__ == "__main__":
    main()
