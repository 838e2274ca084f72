"""GB/s of saving and loading a checkpoint, against torch.save, safetensors, torch's own DCP and dd.

    python benchmarks/checkpoint.py [--repeats 5] [--parameters 300] [--folder PATH]

The state is that of a run in float32: weights and the two moments of AdamW, 12 bytes a parameter, as tensors
of 4096 x 4096 and smaller. All sides write the same bytes, in turns, with one fsync of each file inside the
measured time; what an earlier side left to be written is flushed before the clock starts. All read from the
page cache into the tensors that a run would hold; dd reads into nothing. Medians of the ratios within a turn
are printed, and which part of a save its checksums take. Goals: checksums under 10% of a save; a load, which
verifies what it reads, at least 2.5 times as fast as torch's own DCP, which does not.

Then how long training waits for a save: done at once, or started in the background (``async_mode = "async"``)
when the one before is done; beside them one copy of the state within memory, the least that it can cost on a
CPU. The first turn, in which memory is new, is shown apart.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

HEKATON, DCP, TORCH, SAFETENSORS, DD = "hekaton", "dcp", "torch.save", "safetensors", "dd"

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Side:
    """A way to save and to load; both are given the path, and the state to read from or to fill."""

    save: Callable[[Path, State], object]
    load: Callable[[Path, State], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=300, help="millions of parameters")
    parser.add_argument("--folder", help="where to write; the folder for temporary files if not given")
    arguments = parser.parse_args()
    logging.disable()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
    state = a_state(arguments.parameters * 10**6)
    gb = sum(tensor.nbytes for tensor in state.values()) / 1e9
    print(f"{gb:.2f} GB in {len(state)} tensors, {arguments.repeats} turns", flush=True)
    for measure in (rates, stalls):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(Path(folder), state, gb, repeats=arguments.repeats)


def rates(folder: Path, state: State, gb: float, *, repeats: int) -> None:
    checksums: list[float] = []
    sides = sides_in(folder, gb, checksums)
    saves: dict[str, list[float]] = {name: [] for name in sides}
    loads: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, repeats):  # the first warms up
        for name, side in sides.items():
            target = folder / "target"
            saved = timed(side.save, target, state)
            loaded = timed(side.load, target, state)
            if turn >= 0:
                saves[name].append(saved)
                loads[name].append(loaded)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    for what, seconds in (("save", saves), ("load", loads)):
        for name in sides:
            share = statistics.median(a / b for a, b in zip(seconds[name], seconds[HEKATON], strict=True))
            rate = gb / statistics.median(seconds[name])
            print(f"{what}  {name:13}{rate:6.2f} GB/s   {share:5.2f} of the time of hekaton")
    share = statistics.median(a / b for a, b in zip(checksums[1:], saves[HEKATON], strict=True))
    print(f"checksums: {share:.1%} of a save")


def stalls(folder: Path, state: State, gb: float, *, repeats: int) -> None:
    from hekaton.checkpoint import CheckpointManager
    from hekaton.checkpoint.runs.background import BackgroundSaves

    manager = CheckpointManager(folder, describe={}, keep_latest_k=1)
    saves = BackgroundSaves(manager, pinned=False, saved=lambda *_: None)
    steps = itertools.count(1)
    copies = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    sides: dict[str, Callable[[], object]] = {
        "save": lambda: manager.save(next(steps), {"model": state}, {}),
        "background save": lambda: saves.start(next(steps), {"model": state}, {}, good=True),
        "memory copy": lambda: fill(copies, state),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, side in sides.items():
            seconds[name].append(timed(side))
            saves.wait()
    for name, (first, *rest) in seconds.items():
        share = statistics.median(a / b for a, b in zip(rest, seconds["save"][1:], strict=True))
        spent = statistics.median(rest)
        print(f"waited  {name:16}{spent:7.3f} s   {share:5.2f} of a save   (first {first:.3f} s)")


def timed(work: Callable[..., object], *arguments: object) -> float:
    os.sync()
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def fill(state: State, loaded: State) -> None:
    for name, tensor in state.items():
        tensor.copy_(loaded[name])


def a_state(parameters: int) -> State:
    """Weights and moments, flat by name."""
    torch.manual_seed(0)
    state, left, shapes = {}, parameters, [(4096, 4096), (4096, 1024), (1024, 1024), (1024,), (1,)]
    for shape in shapes:
        size = torch.Size(shape).numel()
        for _ in range(left // size if shape == shapes[0] else min(left // size, 15)):
            left -= size
            for part in ("", "optimizer.exp_avg.", "optimizer.exp_avg_sq."):
                state[f"{part}weight_{len(state) // 3}"] = torch.randn(shape)
    return state


def sides_in(folder: Path, gb: float, checksums: list[float]) -> dict[str, Side]:
    """:param checksums: where the seconds that hekaton's checksums take are noted, save by save."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file, save_file

    from hekaton.checkpoint import CheckpointManager

    def save(path: Path, state: State) -> None:
        with timed_checksums(checksums):
            CheckpointManager(path, describe={}).save(1, {"model": state}, {})

    def load(path: Path, state: State) -> None:
        assert CheckpointManager(path, describe={}).load({"model": state})

    def save_torch(path: Path, state: State) -> None:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def save_safetensors(path: Path, state: State) -> None:
        save_file(state, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(int(gb * 100)):
            file.write(os.urandom(10**7))

    def dd(*arguments: str) -> None:
        subprocess.run(["dd", "bs=8M", "status=none", *arguments], check=True)

    return {
        HEKATON: Side(save, load),
        DCP: Side(
            lambda path, state: dcp.save(state, checkpoint_id=path, no_dist=True),
            lambda path, state: dcp.load(state, checkpoint_id=path, no_dist=True),
        ),
        TORCH: Side(save_torch, lambda path, state: fill(state, torch.load(path, weights_only=True))),
        SAFETENSORS: Side(save_safetensors, lambda path, state: fill(state, load_file(path))),
        DD: Side(
            lambda path, _: dd(f"if={source}", f"of={path}", "conv=fsync"),
            lambda path, _: dd(f"if={path}", "of=/dev/null"),
        ),
    }


@contextlib.contextmanager
def timed_checksums(seconds: list[float]) -> Iterator[None]:
    """Note the time that the checksums of a save take: they are computed between two writes."""
    from hekaton.checkpoint.disk.manifest import Counted

    add = Counted.add
    total = 0.0

    def count(self: Counted, piece: memoryview) -> None:
        nonlocal total
        began = time.perf_counter()
        add(self, piece)
        total += time.perf_counter() - began

    Counted.add = count  # type: ignore[method-assign]
    try:
        yield
    finally:
        Counted.add = add  # type: ignore[method-assign]
        seconds.append(total)


if __name__ == "__main__":
    main()
