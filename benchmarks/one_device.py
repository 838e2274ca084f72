"""Tokens/s, TFLOP/s, MFU and peak memory of Llama 3 on one device, by flavor, compilation and recomputation.

    python benchmarks/one_device.py [--flavors 1B,3B,8B] [--steps 10] [--seq_len 8192] [--write FILE]

Meant for a GPU: on one, ``--write benchmarks/results/NAME.md`` keeps the table with versions. Every variant
is a process of its own; its first steps, which compile and warm up, are not counted. A variant that runs out
of memory is reported as such.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

WARM_UP = 3
RECOMPUTED = {
    "none": ["--activation_checkpoint.mode", "none"],
    "selective op": [
        "--activation_checkpoint.mode", "selective", "--activation_checkpoint.selective_ac_option", "op",
    ],
    "full": ["--activation_checkpoint.mode", "full"],
}  # fmt: skip
COLUMNS = {
    "tokens_per_second": "{:,.0f}",
    "tflops": "{:.1f}",
    "mfu": "{:.1%}",
    "memory_gib": "{:.1f}",
}


def measure(flags: list[str], steps: int) -> None:
    """Run in a process of its own: print the metrics of the counted steps as JSON."""
    from hekaton.config import load
    from hekaton.distributed import process_group, this_process
    from hekaton.rules import check
    from hekaton.trainer import Trainer

    process = this_process()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load([], [*flags, "--job.dump_folder", folder, "--training.steps", str(steps + WARM_UP)])
        check(loaded, world_size=1, device_type=process.device.type)
        with process_group(process, loaded.config.comm, dump_folder=folder):
            trainer = Trainer(loaded, process)
            for _ in range(WARM_UP):
                trainer.train_step()
            trainer.meter.report()
            for _ in range(steps):
                losses, _ = trainer.train_step()
            metrics = {"loss": losses["loss"].item(), **trainer.meter.report()}  # the loss is waited for
            trainer.loader.close()
    print(json.dumps(metrics))


def row(flavor: str, compiled: bool, recomputed: str, arguments: argparse.Namespace) -> str:
    flags = [
        "--model.name", "llama3", "--model.flavor", flavor, "--model.tokenizer", "byte",
        "--training.seq_len", str(arguments.seq_len), "--training.local_batch_size", str(arguments.rows),
        "--training.packing", "concat", *RECOMPUTED[recomputed],
        *(["--compile.enable"] if compiled else []),
        # Weights, gradients and AdamW's moments of 8B in float32 are 128 GB by themselves.
        *(["--training.dtype", "bfloat16"] if flavor == "8B" else []),
    ]  # fmt: skip
    words = [sys.executable, __file__, "--measure", json.dumps(flags), "--steps", str(arguments.steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    name = f"| {flavor} | {'yes' if compiled else 'no'} | {recomputed} "
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1]
        return f"{name}| {'out of memory' if 'OutOfMemory' in done.stderr else reason} |" + " |" * (
            len(COLUMNS) - 1
        )
    metrics = json.loads(done.stdout.splitlines()[-1])
    return name + "".join(
        f"| {form.format(metrics[column]) if column in metrics else '-'} " for column, form in COLUMNS.items()
    ) + "|"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavors", default="1B,3B,8B")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seq_len", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure, arguments.steps)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}; per step "
        f"{arguments.rows} × {arguments.seq_len} tokens, mean of {arguments.steps} steps.",
        "",
        "| flavor | compiled | recomputed | tokens/s | TFLOP/s | MFU | memory, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for flavor in arguments.flavors.split(","):
        for compiled in (False, True):
            for recomputed in RECOMPUTED:
                lines.append(row(flavor, compiled, recomputed, arguments))
                print(lines[-1], flush=True)
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
