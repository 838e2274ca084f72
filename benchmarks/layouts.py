"""Time per step and peak memory per rank of layouts, against a single process.

    python benchmarks/layouts.py [--steps 8] [--seq_len 1024] [--layouts shard2,tp2,cp2,pp2] [--write FILE]

Every process has one thread, so that N of them on N cores do 1/N of the work each; the single process runs
before and after each layout, and the ratio is against the mean of both: time x N / single (1.0 is ideal; goal
for shard2: below 1.10). Memory is what a rank's resident set grows by from before the model is built.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hekaton.config import load
from hekaton.distributed import process_group, this_process
from hekaton.rules import check
from hekaton.testing.distributed import NamedLayout, run_processes

ROWS = 8
FLAGS = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides",
    '{"dim": 384, "n_layers": 4, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 1024, "vocab_size": 264}',
    "--training.global_batch_size", str(ROWS), "--training.packing", "concat",
    "--training.mixed_precision_param", "float32", "--activation_checkpoint.mode", "none",
    "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip


def measure(flags: list[str], steps: int, result: str) -> None:
    """Run on every process; rank 0 writes the median seconds per step, all ranks' greatest memory in GiB."""
    from hekaton.trainer import Trainer

    torch.set_num_threads(1)
    process = this_process()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load([], [*flags, "--job.dump_folder", folder, "--training.steps", str(steps + 2)])
        check(loaded, world_size=process.world_size, device_type="cpu")
        with process_group(process, loaded.config.comm, dump_folder=folder):
            before = peak_memory()
            trainer = Trainer(loaded, process)
            seconds = []
            for _ in range(steps + 2):
                torch.distributed.barrier()
                began = time.perf_counter()
                trainer.train_step()
                torch.distributed.barrier()
                seconds.append(time.perf_counter() - began)
            memory = torch.tensor(peak_memory() - before)
            torch.distributed.all_reduce(memory, torch.distributed.ReduceOp.MAX)
            trainer.loader.close()
    if process.rank == 0:
        Path(result).write_text(
            json.dumps({"seconds": statistics.median(seconds[2:]), "memory": memory.item()})
        )


def peak_memory() -> float:
    """GiB, since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(layout: str, steps: int, seq_len: int) -> dict[str, Any]:
    """:param layout: see :class:`NamedLayout`."""
    named = NamedLayout(layout)
    rows = ["--training.local_batch_size", str(ROWS // named.dp), "--training.seq_len", str(seq_len)]
    flags = [*FLAGS, *named.flags, *rows]
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        run_processes(
            __file__,
            "measure",
            processes=named.processes,
            timeout=600,
            flags=flags,
            steps=steps,
            result=result.name,
        )
        return {"processes": named.processes, **json.loads(Path(result.name).read_text())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--layouts", default="shard2,replicate2,tp2,cp2,pp2")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"torch {torch.__version__}, Python {platform.python_version()}, CPU, one thread per process; "
        f"{ROWS} rows of {arguments.seq_len} tokens per step, median of {arguments.steps} steps",
        "",
        "| layout | s/step | single s/step | time × N / single | memory per rank, GiB | single, GiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    before = run("", arguments.steps, arguments.seq_len)
    for layout in arguments.layouts.split(","):
        got = run(layout, arguments.steps, arguments.seq_len)
        after = run("", arguments.steps, arguments.seq_len)
        single = (before["seconds"] + after["seconds"]) / 2
        ratio = got["seconds"] * got["processes"] / single
        lines.append(
            f"| {layout} | {got['seconds']:.3f} | {single:.3f} | {ratio:.2f} | {got['memory']:.2f} "
            f"| {after['memory']:.2f} |"
        )
        print(lines[-1], flush=True)
        before = after
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
