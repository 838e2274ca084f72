"""Time and memory of conversions to and from the layout of Hugging Face, against copying the files.

    python benchmarks/convert.py [--runs 3] [--folder /tmp]

Makes a random checkpoint of 1.2 billion parameters in bf16 (Llama 3's 1B), then in turns copies it with
``cp`` and syncs, converts it to hekaton's layout, and converts that back, each as a process of its own, after
one unmeasured turn. Prints the medians of seconds, of processor seconds, of GB/s, and of the ratios to the
copy of the same turn, and the highest peak of resident memory. All sides find their source on the disk, not
in the page cache, and have their bytes on the disk when they end. The start of a process that imports torch
and the plugins is the same for a model of any size: it is measured too, and the ratio printed with and
without it. Goals: memory below 1 GB plus twice the largest tensor, a ratio of at most 2.

Needs 10 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SETTLED = 5.0
LARGEST = 128_256 * 2_048 * 2
"""Bytes of the largest tensor, the embedding."""
START = "import hekaton.checkpoint.runs.conversion; from hekaton.plugins import Plugins; Plugins.discover()"


@dataclass(frozen=True)
class Measured:
    """What a process took."""

    seconds: float
    processor: float
    peak_bytes: int


def measured(*commands: list[str]) -> Measured:
    """Run processes one after the other; their time together, and the largest memory."""
    began = time.perf_counter()
    peak, processor = 0, 0.0
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        processor += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss * 1024)
    return Measured(time.perf_counter() - began, processor, peak)


def into(target: Path, source: Path, *commands: list[str]) -> Measured:
    """Run processes that write ``target``, with the same wait after the last one was removed.

    A virtual machine gives freed memory back after a while: whoever comes sooner has it cheaper.

    :param source: what they read; taken out of the page cache.
    """
    shutil.rmtree(target, ignore_errors=True)
    for file in source.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(SETTLED)
    return measured(*commands)


def make(folder: Path) -> None:
    """A folder as from_pretrained opens it, of random weights: Llama 3's 1B."""
    import torch

    from hekaton.weights import LazyTensor
    from hekaton.weights.format import Weights, WriteOptions
    from hekaton_hf.checkpoint import HFFormat
    from hekaton_llama3.hugging_face import table, write_config
    from hekaton_llama3.spec import flavors, train_spec

    config = flavors["1B"]
    with torch.device("meta"):
        model = train_spec.model(config)

    def random(region: tuple[slice, ...]) -> torch.Tensor:
        return torch.randn([part.stop - part.start for part in region], dtype=torch.bfloat16)

    ours = {
        name: LazyTensor(tuple(parameter.shape), torch.bfloat16, random)
        for name, parameter in model.named_parameters()
    }
    content = {"architectures": ["LlamaForCausalLM"], **write_config(config)}
    weights = Weights(config=content, tensors=table(config).to_hf(ours, what="random weights"))
    HFFormat().write(folder, weights, WriteOptions())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make is not None:
        make(arguments.make)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.runs)


def run(folder: Path, runs: int) -> None:
    source, copy, ours, back = (folder / name for name in ("source", "copy", "ours", "back"))
    source.mkdir()
    # In a process of its own, like all that needs torch: a child's peak memory begins with its parent's.
    measured([sys.executable, __file__, "--make", str(source)])
    size = sum(file.stat().st_size for file in source.iterdir())
    hekaton = [sys.executable, "-m", "hekaton", "convert"]
    results: dict[str, list[Measured]] = {"start": [], "cp": [], "from-hf": [], "to-hf": []}
    for number in range(runs + 1):
        turn = {
            "start": measured([sys.executable, "-c", START]),
            "cp": into(copy, source, ["cp", "-r", str(source), str(copy)], ["sync", str(copy)]),
            "from-hf": into(ours, source, [*hekaton, "from-hf", str(source), str(ours)]),
            "to-hf": into(back, ours, [*hekaton, "to-hf", str(ours), str(back)]),
        }
        if number:
            for name, one in turn.items():
                results[name].append(one)
    show(results, size=size)


def show(results: Mapping[str, list[Measured]], *, size: int) -> None:
    limit = 1 + 2 * LARGEST / 1e9
    print(f"{size / 1e9:.2f} GB, largest tensor {LARGEST / 1e9:.2f} GB, limit of memory {limit:.2f} GB")
    for name, runs in results.items():
        seconds = statistics.median(one.seconds for one in runs)
        processor = statistics.median(one.processor for one in runs)
        peak = max(one.peak_bytes for one in runs) / 1e9
        line = f"{name:8}  {seconds:6.2f} s  {processor:6.2f} s of processors  {peak:5.2f} GB"
        if name != "start":
            line += f"  {size / seconds / 1e9:5.2f} GB/s"
        if name.endswith("-hf"):
            turns = list(zip(runs, results["cp"], results["start"], strict=True))
            ratio = statistics.median(one.seconds / cp.seconds for one, cp, _ in turns)
            without = statistics.median(
                (one.seconds - start.seconds) / cp.seconds for one, cp, start in turns
            )
            line += f"  {ratio:5.2f} x cp, {without:5.2f} without the start"
        print(line)


if __name__ == "__main__":
    main()
